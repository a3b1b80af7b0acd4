"""A bundle in S3 is fetched once, verified and cached."""

import shutil
from concurrent.futures import ThreadPoolExecutor
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


@pytest.mark.parametrize("leftover", ["empty folder", "half a bundle", "damaged", "file", "broken link"])
def test_what_an_earlier_download_left_in_the_cache_is_replaced(
    uploaded: str, tiny_bundle: Path, leftover: str
) -> None:
    """Whatever lies in the bundle's place and is not the whole bundle does not block the start."""
    folder = resolve(uploaded).folder
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir()
    (partial / "classifier.safetensors").mkdir()
    if leftover == "damaged":
        (folder / "classifier.safetensors").write_bytes(b"damaged")
    else:
        shutil.rmtree(folder)
        if leftover == "file":
            folder.write_bytes(b"")
        elif leftover == "broken link":
            folder.symlink_to("nowhere")
        else:
            folder.mkdir()
            if leftover == "half a bundle":
                shutil.copy(tiny_bundle / "bundle.json", folder)
    assert resolve(uploaded).folder == folder
    assert resolve(folder).digest == resolve(tiny_bundle).digest
    assert not partial.exists()


def test_processes_that_start_together_share_one_download(uploaded: str) -> None:
    """Four at once find a leftover; each has the whole bundle."""
    folder = resolve(uploaded).folder
    (folder / "classifier.safetensors").unlink()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(resolve, [uploaded] * 4))
    assert {bundle.folder for bundle in found} == {folder}


def test_a_pin_is_checked_before_anything_is_downloaded(uploaded: str, tmp_path: Path) -> None:
    """Another manifest than the pinned one costs one request."""
    with pytest.raises(BundleError, match="pinned"):
        resolve(uploaded, digest="0" * 64)
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named(
    uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with a reason and a remedy."""
    (tmp_path / "no-folder").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-folder"))
    with pytest.raises(BundleError, match="XDG_CACHE_HOME") as error:
        resolve(uploaded)
    assert error.value.reason == "cache_unusable"


def test_a_missing_bundle_in_s3_is_not_found(uploaded: str) -> None:
    """A wrong prefix has the reason `not_found`."""
    with pytest.raises(BundleError) as error:
        resolve(uploaded + "-wrong")
    assert error.value.reason == "not_found"
