"""A bundle on disk is verified before it is used."""

import json
import shutil
from pathlib import Path

import pytest

from detector.bundle.files import MANIFEST_FILE, BundleError, open_bundle, resolve, write_manifest
from detector.bundle.manifest import Manifest


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


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\\\b", "./a", "a//b", "."])
@pytest.mark.parametrize("field", ["files", "classifier_file", "unet"])
def test_a_manifest_cannot_name_files_outside_its_folder(bundle_folder: Path, field: str, name: str) -> None:
    """A manifest with absolute or climbing paths is malformed, in whichever field it names them."""
    edit(bundle_folder, **{field: {"files": {name: "0" * 64}, "unet": {"folder": name}}.get(field, name)})
    with pytest.raises(BundleError) as error:
        open_bundle(bundle_folder)
    assert error.value.reason == "malformed"


@pytest.mark.parametrize(
    "name",
    [
        "unlisted.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        ".hidden",
        "more/notes.txt",
    ],
)
def test_a_file_that_the_manifest_does_not_list_is_refused(bundle_folder: Path, name: str) -> None:
    """Every file but the manifest and the model card has a digest, so that none can be added or loaded."""
    (bundle_folder / name).parent.mkdir(exist_ok=True)
    (bundle_folder / name).write_text("{}")
    with pytest.raises(BundleError, match="not listed") as error:
        open_bundle(bundle_folder)
    assert error.value.reason == "file_not_listed"


@pytest.mark.parametrize(
    "name", ["classifier.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
)
def test_the_files_of_the_networks_must_be_listed(bundle_folder: Path, name: str) -> None:
    """Weights without a digest are not loaded, even when they are there."""
    files = json.loads((bundle_folder / MANIFEST_FILE).read_text())["files"]
    edit(bundle_folder, files={key: value for key, value in files.items() if key != name})
    with pytest.raises(BundleError, match="not listed"):
        open_bundle(bundle_folder)


def test_the_unet_is_read_from_one_file(bundle_folder: Path) -> None:
    """An index of shards could name weights anywhere on the disk; a listed one is malformed too."""
    (bundle_folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"conv_in.weight": "../../outside.safetensors"}})
    )
    with pytest.raises(BundleError) as error:
        write_manifest(
            bundle_folder, Manifest.model_validate_json((bundle_folder / MANIFEST_FILE).read_text())
        )
    assert error.value.reason == "malformed"


@pytest.mark.parametrize("name", ["classifier.safetensors", "unet"])
def test_a_link_out_of_the_bundle_is_refused(bundle_folder: Path, tmp_path: Path, name: str) -> None:
    """Neither a file nor a folder of a bundle may be a symbolic link, whatever its content."""
    moved = (bundle_folder / name).rename(tmp_path / "elsewhere")
    (bundle_folder / name).symlink_to(moved)
    with pytest.raises(BundleError) as error:
        open_bundle(bundle_folder)
    assert error.value.reason in {"malformed", "file_not_listed"}


def test_a_pinned_bundle_is_the_one_whose_manifest_has_the_digest(bundle_folder: Path) -> None:
    """With another digest nothing is loaded, although every file has the digest that its manifest lists."""
    pinned = open_bundle(bundle_folder).digest
    assert resolve(bundle_folder, digest=pinned).digest == pinned
    edit(bundle_folder, thresholds={"review_from": 1.0, "generated_from": 1.0})
    assert open_bundle(bundle_folder).digest != pinned
    with pytest.raises(BundleError, match="pinned") as error:
        resolve(bundle_folder, digest=pinned)
    assert error.value.reason == "digest_mismatch"


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
