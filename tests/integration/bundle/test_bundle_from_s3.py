"""A bundle in S3 is fetched once, verified and cached."""

from pathlib import Path

import pytest

from detector.bundle.files import BundleError, resolve
from worker.embedded.seaweedfs import REGION
from worker.embedded.services import EmbeddedServices


@pytest.fixture
def uploaded(
    services: EmbeddedServices, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Upload the tiny bundle, and point boto3's own settings at the test's S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", services.s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", services.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", services.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in tiny_bundle.rglob("*"):
        if path.is_file():
            key = f"bundles/{tmp_path.name}/{path.relative_to(tiny_bundle).as_posix()}"
            services.seaweedfs.client().upload_file(str(path), services.bucket, key)
    return f"s3://{services.bucket}/bundles/{tmp_path.name}"


def test_a_bundle_is_fetched_from_s3_and_cached_by_digest(uploaded: str, tiny_bundle: Path) -> None:
    """The digest is that of the original, and the second call reads the cache."""
    first = resolve(uploaded)
    assert first.digest == resolve(tiny_bundle).digest
    assert first.folder.name == first.digest
    before = first.classifier_path.stat().st_mtime_ns
    assert resolve(uploaded).classifier_path.stat().st_mtime_ns == before


def test_a_tampered_bundle_in_s3_is_not_cached(uploaded: str, services: EmbeddedServices) -> None:
    """Weights with another digest than the manifest's are rejected, the second time as well."""
    prefix = uploaded.removeprefix(f"s3://{services.bucket}/")
    services.seaweedfs.client().put_object(
        Bucket=services.bucket, Key=f"{prefix}/classifier.safetensors", Body=b"something else"
    )
    for _ in range(2):
        with pytest.raises(BundleError) as error:
            resolve(uploaded)
        assert error.value.reason == "digest_mismatch"


def test_a_missing_bundle_in_s3_is_not_found(uploaded: str) -> None:
    """A wrong prefix has the reason `not_found`."""
    with pytest.raises(BundleError) as error:
        resolve(uploaded + "-wrong")
    assert error.value.reason == "not_found"
