"""The settings."""

import os

import pytest
from pydantic import SecretStr, ValidationError

from worker.broker.app import create_app
from worker.broker.connection import connect
from worker.settings import Settings, unknown_variables, without_password
from worker.storage import Storage


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the caller's DNF_ variables."""
    for name in list(os.environ):
        if name.startswith("DNF_"):
            monkeypatch.delenv(name)


def test_every_setting_has_a_description_of_one_line() -> None:
    """The table of settings is generated from them."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description
        assert len(field.description) <= 100, name


@pytest.mark.parametrize("value", ["a-1,b-2", " a-1 , b-2 ", '["a-1", "b-2"]'])
def test_buckets_are_listed_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """With the same result."""
    monkeypatch.setenv("DNF_ALLOWED_BUCKETS", value)
    assert Settings().allowed_buckets == ("a-1", "b-2")


def test_the_default_number_of_threads_is_twice_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the checks are prepared while the other half is in the model."""
    monkeypatch.setenv("DNF_BATCH_SIZE", "24")
    assert Settings().threads == 48
    monkeypatch.setenv("DNF_THREADS", "8")
    assert Settings().threads == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DNF_REDIS_URL", "http://127.0.0.1"),
        ("DNF_REDIS_URL", "redis://127.0.0.1:6379/0?health_check_interval=30"),
        ("DNF_REDIS_URL", "redis://127.0.0.1:6379?protocol=2"),
        ("DNF_REDIS_URL", "redis://127.0.0.1:6379?db=7"),
        ("DNF_REDIS_URL", "redis://127.0.0.1:6379/cache"),
        ("DNF_REDIS_URL", "redis://127.0.0.1:6379/0/1"),
        ("DNF_REDIS_URL", "redis://127.0.0.1:6379/0#1"),
        ("DNF_DATABASE_URL", "mysql://127.0.0.1/moderation"),
        ("DNF_DATABASE_URL", "postgresql://127.0.0.1/moderation?password=secret"),
        ("DNF_DATABASE_OWNER_URL", "postgresql://owner:with/slash@127.0.0.1/moderation"),
        ("DNF_REVIEW_AUDIT_SHARE_REAL", "1.5"),
        ("DNF_CHECK_DEADLINE_SECONDS", "120"),
        ("DNF_BATCH_SIZE", "0"),
        ("DNF_BATCH_SIZE", "many"),
        ("DNF_ALLOWED_BUCKETS", '["a'),
        ("DNF_LOG_FORMAT", "xml"),
        ("DNF_DTYPE", "float16"),
    ],
)
def test_an_invalid_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """For example a deadline of a check that is not below the visibility timeout."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, and passwords in URLs, in the table of settings and in the object's text."""
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
def test_the_error_of_an_invalid_url_does_not_quote_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It may hold a password, which is often what makes the URL invalid."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "hid" not in str(refused.value)
    assert name.removeprefix("DNF_").lower() in str(refused.value)


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:8333", "http://[::1]:8333", "https://s3.eu-west-1.amazonaws.com", "http://seaweedfs"],
)
def test_an_endpoint_that_boto3_accepts_is_valid(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Host names and addresses of both IP versions."""
    monkeypatch.setenv("DNF_S3_ENDPOINT_URL", endpoint)
    settings = Settings()
    assert settings.shown()["s3_endpoint_url"] == endpoint
    assert Storage(settings.storage).client.meta.endpoint_url == endpoint


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "redis://name@host/0", "redis://[::1]:6379/0"])
def test_a_url_without_a_password_is_not_masked(url: str) -> None:
    """With or without a user."""
    assert without_password(url) == url


@pytest.mark.parametrize("seconds", [5, 20, 120, 3600])
def test_a_retry_waits_for_at_most_a_quarter_of_the_visibility_timeout(
    monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """After the timeout it would be delivered again while it waits."""
    monkeypatch.setenv("DNF_VISIBILITY_TIMEOUT_SECONDS", str(seconds))
    monkeypatch.setenv("DNF_CHECK_DEADLINE_SECONDS", "4")
    assert 0 < Settings().longest_retry_seconds <= min(30, seconds / 4)


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://h/", "redis://h:6380/7", "redis://u:p%2F@[::1]:6379/15"]
)
def test_both_libraries_read_a_broker_that_the_settings_take(url: str) -> None:
    """redis-py and kombu see the same host, port and database."""
    settings = Settings(redis_url=SecretStr(url))
    with connect(settings.broker) as client:
        ours = client.connection_pool.connection_kwargs
    theirs = create_app(settings).connection_for_write()
    assert ours["host"] == theirs.hostname
    assert ours.get("port", 6379) == (theirs.port or 6379)
    assert int(ours.get("db", 0)) == int((theirs.virtual_host or "/").strip("/") or 0)


def test_a_variable_that_is_no_setting_is_named_with_the_one_that_it_resembles() -> None:
    """It would have no effect; other prefixes, and any case of a setting, are none of ours to name."""
    environment = {
        "DNF_REDS_URL": "", "DNF_SOMETHING_ELSE": "", "dnf_redis_url": "", "DNF_THREADS": "", "PATH": "",
    }  # fmt: skip
    assert unknown_variables(environment) == ["DNF_REDS_URL (DNF_REDIS_URL?)", "DNF_SOMETHING_ELSE"]


def test_the_passwords_of_the_database_are_masked() -> None:
    """In the settings that are shown, and wherever a secret's text would be; options such as TLS stay."""
    settings = Settings(
        database_url=SecretStr("postgresql://moderation:p%40ss@db/m?sslmode=verify-full"),
        database_owner_url=SecretStr("postgres://owner:another@db/m"),
    )
    shown = settings.shown()
    assert shown["database_url"] == "postgresql://moderation:********@db/m?sslmode=verify-full"
    assert shown["database_owner_url"] == "postgres://owner:********@db/m"
    assert {"p%40ss", "p@ss", "another"} <= settings.secrets()
