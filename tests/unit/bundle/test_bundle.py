"""A bundle on disk is verified before it is used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from detector.bundle.files import MANIFEST_FILE, BundleError, open_bundle, resolve
from detector.detector import Detector


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


def test_a_batch_gives_each_picture_its_own_finding(tiny_bundle: Path) -> None:
    """Findings keep the order, and a picture's score does not depend on the rest of the batch."""
    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (70 + 9 * i, 90, 3), dtype=np.uint8) for i in range(5)]
    prepared = [detector.prepare(picture) for picture in pictures]
    together = detector.examine(prepared)
    alone = [detector.examine([one])[0] for one in prepared]
    assert [f.logit for f in together] == pytest.approx([f.logit for f in alone], abs=1e-4)
    assert detector.examine([]) == []


def test_a_picture_smaller_than_a_view_is_examined(tiny_bundle: Path) -> None:
    """The picture is mirrored at its edges and keeps its scale."""
    detector = Detector.load(tiny_bundle, device="cpu")
    assert detector.prepare(np.zeros((33, 40, 3), dtype=np.uint8)).shape == (1, 3, 64, 64)


def test_bfloat16_stays_near_float32(tiny_bundle: Path) -> None:
    """The probabilities differ by less than 0.02."""
    picture = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    scores = []
    for dtype in ("float32", "bfloat16"):
        detector = Detector.load(tiny_bundle, device="cpu", dtype=dtype)
        scores.append(detector.examine([detector.prepare(picture)])[0].probability)
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
