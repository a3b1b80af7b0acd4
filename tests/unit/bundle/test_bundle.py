"""A bundle on disk is verified before it is used."""

import json
import shutil
from pathlib import Path

import pytest

from detector.bundle.files import MANIFEST_FILE, BundleError, open_bundle, resolve


@pytest.fixture
def bundle_folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Copy the tiny bundle, so that a test can damage it."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(folder: Path, **changes: object) -> None:
    """Change fields of the manifest."""
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_changed_weight_file_is_not_loaded(bundle_folder: Path) -> None:
    """One flipped bit in the weights is a digest mismatch."""
    weights = bundle_folder / "classifier.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError) as error:
        open_bundle(bundle_folder)
    assert error.value.reason == "digest_mismatch"


def test_a_missing_file_is_reported(bundle_folder: Path) -> None:
    """Every file that the manifest lists must exist."""
    (bundle_folder / "unet" / "config.json").unlink()
    with pytest.raises(BundleError, match="missing"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_name_files_outside_its_folder(bundle_folder: Path, name: str) -> None:
    """A manifest with absolute or climbing paths is malformed."""
    edit(bundle_folder, files={name: "0" * 64})
    with pytest.raises(BundleError) as error:
        open_bundle(bundle_folder)
    assert error.value.reason == "malformed"


def test_an_unknown_field_is_rejected(bundle_folder: Path) -> None:
    """An unknown field might change the verdict, so it is not ignored."""
    edit(bundle_folder, temperature=2)
    with pytest.raises(BundleError, match="temperature"):
        open_bundle(bundle_folder)


def test_an_unknown_name_is_not_found() -> None:
    """A name that is neither a folder nor a shipped bundle has the reason `not_found`."""
    with pytest.raises(BundleError) as error:
        resolve("no-such-bundle")
    assert error.value.reason == "not_found"


def test_the_shipped_bundle_is_complete_and_small() -> None:
    """The default bundle verifies, has a model card and figures, and stays under 25 MB."""
    bundle = resolve("default")
    assert (bundle.folder / "MODEL_CARD.md").is_file()
    assert {"test_seen", "test_unseen"} <= bundle.manifest.figures.keys()
    assert sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file()) < 25e6
