"""The settings."""

import pytest
from pydantic import ValidationError

from worker.settings import Settings, without_password
from worker.storage import Storage


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caller's own DNF_ variables out."""
    import os

    for name in list(os.environ):
        if name.startswith("DNF_"):
            monkeypatch.delenv(name)


def test_every_setting_says_in_one_line_what_it_is() -> None:
    """The table of settings is generated from these lines."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description
        assert len(field.description) <= 100, name


@pytest.mark.parametrize("value", ["a-1,b-2", " a-1 , b-2 ", '["a-1", "b-2"]'])
def test_buckets_are_listed_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Both spellings mean the same."""
    monkeypatch.setenv("DNF_ALLOWED_BUCKETS", value)
    assert Settings().allowed_buckets == ("a-1", "b-2")


def test_without_a_number_of_threads_there_are_two_for_each_place_in_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the checks prepare while the other half is in the model."""
    monkeypatch.setenv("DNF_BATCH_SIZE", "24")
    assert Settings().threads == 48
    monkeypatch.setenv("DNF_THREADS", "8")
    assert Settings().threads == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DNF_REDIS_URL", "http://127.0.0.1"),
        ("DNF_CHECK_DEADLINE_SECONDS", "120"),
        ("DNF_BATCH_SIZE", "0"),
        ("DNF_BATCH_SIZE", "many"),
        ("DNF_ALLOWED_BUCKETS", '["a'),
        ("DNF_LOG_FORMAT", "xml"),
        ("DNF_DTYPE", "float16"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A worker does not start with it; the deadline of a check stays below the visibility timeout."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the table of settings nor the object's text shows a key, or the password in an address."""
    monkeypatch.setenv("DNF_REDIS_URL", "rediss://worker:hidden-one@redis.example:6380/2")
    monkeypatch.setenv("DNF_S3_ACCESS_KEY_ID", "hidden-two")
    monkeypatch.setenv("DNF_S3_SECRET_ACCESS_KEY", "hidden-three")
    monkeypatch.setenv("DNF_S3_ENDPOINT_URL", "https://worker:hidden%2Ffour@store.example:8333")
    settings = Settings()
    assert "hidden" not in f"{settings} {settings!r} {settings.shown()}"
    assert settings.shown()["s3_endpoint_url"] == "https://worker:********@store.example:8333"
    assert settings.shown()["redis_url"] == "rediss://worker:********@redis.example:6380/2"
    assert settings.secrets() == {
        "hidden-one",
        "hidden-two",
        "hidden-three",
        "hidden%2Ffour",
        "hidden/four",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DNF_REDIS_URL", "http://:hidden@127.0.0.1"),
        ("DNF_REDIS_URL", "redis://:hid/den@127.0.0.1:6379/0"),
        ("DNF_REDIS_URL", "redis://:12/hidden@127.0.0.1:6379/0"),
        ("DNF_REDIS_URL", "redis://:12#hidden@127.0.0.1:6379/0"),
        ("DNF_REDIS_URL", "redis://:12?hidden@127.0.0.1:6379/0"),
        ("DNF_REDIS_URL", "redis://:hidden@[127.0.0.1:6379/0"),
        ("DNF_REDIS_URL", "redis://:hidden@127.0.0.1:99999/0"),
        ("DNF_S3_ENDPOINT_URL", "ftp://:hidden@store.example"),
        ("DNF_S3_ENDPOINT_URL", "https://a:hid/den@store.example"),
        ("DNF_S3_ENDPOINT_URL", "https://a:hidden@a_store"),
        ("DNF_S3_ENDPOINT_URL", "https://a:hidden@"),
        ("DNF_S3_ENDPOINT_URL", "hidden"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_a_word_of_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It may hold a password, most of all where the password is what makes it unreadable."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "hid" not in str(refused.value)
    assert name.removeprefix("DNF_").lower() in str(refused.value)


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:8333", "http://[::1]:8333", "https://s3.eu-west-1.amazonaws.com", "http://seaweedfs"],
)
def test_an_endpoint_that_boto3_takes_is_taken(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """A name, a longer one, and both kinds of numbers."""
    monkeypatch.setenv("DNF_S3_ENDPOINT_URL", endpoint)
    settings = Settings()
    assert settings.shown()["s3_endpoint_url"] == endpoint
    assert Storage(settings.storage).client.meta.endpoint_url == endpoint


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "redis://name@host/0", "redis://[::1]:6379/0"])
def test_an_address_without_a_password_is_shown_as_it_is(url: str) -> None:
    """Nothing is masked where nothing is secret."""
    assert without_password(url) == url


@pytest.mark.parametrize("seconds", [5, 20, 120, 3600])
def test_a_check_waits_for_its_retry_well_below_the_visibility_timeout(
    monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """A retry that waits longer would be delivered again while it waits; the bound is a quarter."""
    monkeypatch.setenv("DNF_VISIBILITY_TIMEOUT_SECONDS", str(seconds))
    monkeypatch.setenv("DNF_CHECK_DEADLINE_SECONDS", "4")
    assert 0 < Settings().longest_retry_seconds <= min(30, seconds / 4)
