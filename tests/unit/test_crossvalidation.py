"""Cross-validation: its figures against values computed by hand, its folder and its command."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from detector.bundle.calibration import PlattScaling
from detector.bundle.files import open_bundle, write_manifest
from detector.cli import main
from detector.corpus.corpus import Sample
from detector.evaluation.conditions import DEGRADATIONS
from detector.evaluation.held_out import ScoredSample, figures


def scored(name: str, logit: float, *, label: str, content: str = "", fold: int = 1) -> ScoredSample:
    """Make a scored picture."""
    sample = Sample(Path(name), label != "real", label, name, content=content)
    return ScoredSample(sample, fold, f"unit {label}", logit, 1 / (1 + np.exp(-logit)))


def test_the_matched_figure_does_not_rise_with_content() -> None:
    """Art scores 2 and faces score -2, whatever the label: the pooled AUROC is high, the matched one is 0.5.

    Ten generated and ten real pictures of each content, and ten more generated ones of art: pooled, 20 of 30
    generated pictures score above ten of the 20 real ones and tie with ten, and 10 tie with ten:
    (20 * 10 + 20 * 10 / 2 + 10 * 10 / 2) / 600 = 0.583.
    """
    pictures = [
        scored(f"{label}{content}{number}", logit, label=label, content=content)
        for label, content, logit, count in (
            ("gan", "art", 2.0, 20),
            ("real", "art", 2.0, 10),
            ("gan", "faces", -2.0, 10),
            ("real", "faces", -2.0, 10),
            ("gan", "food", 1.0, 1),
        )
        for number in range(count)
    ]
    measured = figures(pictures[:-1])
    assert measured.pooled.value == pytest.approx(350 / 600)
    assert measured.matched is not None
    assert measured.matched.value == pytest.approx(0.5)
    assert [(row.content, row.real, row.generated) for row in measured.contents] == [
        ("art", 10, 20),
        ("faces", 10, 10),
    ]
    # A content that one class lacks is left out; a family is compared with what shows the same.
    assert [row.content for row in figures(pictures).contents] == ["art", "faces"]
    assert {row.family: row.matched for row in measured.families} == {"gan": 0.5, "real": 0.5}


def test_pictures_without_content_have_no_matched_figure() -> None:
    """Nobody said what they show."""
    pictures = [scored(f"{n}", n, label="gan" if n % 2 else "real") for n in range(40)]
    assert figures(pictures).matched is None


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write eight pictures each of three generators and three cameras, half of them faces."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = [("path", "label", "family", "source", "content", "generator")]
    for number in range(48):
        label, kind = ("real", "generated")[number % 2], number // 2 % 3
        path = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / path)
        content = ("faces", "art")[number // 6 % 2]
        rows.append((path, label, f"{label}{kind}", f"site{label}{kind}", content, f"gan{kind}"))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_a_cross_validation_reports_new_generators_and_continues(corpus: Path, tmp_path: Path) -> None:
    """Every picture has one score; a second run trains nothing, and another recipe is refused."""
    out = tmp_path / "out"
    command = ["crossvalidate", str(corpus), "--feature", "npr", "--folds", "2", "--out", str(out)]
    tiny = ["--size", "32", "--views", "1", "--batch", "4"]
    first = CliRunner().invoke(main, [*command, *tiny, "--max-steps", "1"])
    assert first.exit_code == 0, first.output
    report = json.loads((out / "crossvalidation.json").read_text())
    assert len({picture["path"] for picture in report["pictures"]}) == 48
    assert {len(picture["views"]) for picture in report["pictures"]} == {1}
    assert [fold["steps"] for fold in report["folds"]] == [1, 1]
    assert report["cost"]["gflop"] > 0
    assert report["figures"]["matched"]["value"] == pytest.approx(
        np.mean([row["auroc"]["value"] for row in report["figures"]["contents"]])
    )
    page = (out / "crossvalidation.md").read_text()
    for text in ("AUROC, pooled", "AUROC, matched in content", "generated0", "generator: gan0", "GFLOP"):
        assert text in page
    weights = (out / "fold-1" / "bundle" / "classifier.safetensors").stat().st_mtime_ns
    again = CliRunner().invoke(main, [*command, *tiny, "--max-steps", "1"])
    assert again.exit_code == 0, again.output
    assert (out / "fold-1" / "bundle" / "classifier.safetensors").stat().st_mtime_ns == weights
    assert json.loads((out / "crossvalidation.json").read_text())["figures"] == report["figures"]
    assert "Margins" not in again.output
    compared = CliRunner().invoke(main, [*command, *tiny, "--max-steps", "1", "--against", str(out)])
    assert "+0.000" in compared.output
    other = CliRunner().invoke(main, [*command, *tiny, "--max-steps", "2"])
    assert other.exit_code == 2
    assert "other pictures or of another recipe" in " ".join(other.output.split())
    wrong = CliRunner().invoke(main, [*command, *tiny, "--max-steps", "1", "--against", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "has no finished cross-validation" in " ".join(wrong.output.split())


def test_a_bundle_is_calibrated_on_photographs_under_every_degradation(corpus: Path, tmp_path: Path) -> None:
    """No photograph that a fold never saw is flagged, whatever happened to it; other views are refused."""
    trial = tmp_path / "trial"
    recipe = ["--feature", "npr", "--size", "32", "--views", "1", "--batch", "4", "--max-steps", "1"]
    command = ["crossvalidate", str(corpus), "--folds", "2", "--out", str(trial), *recipe]
    assert CliRunner().invoke(main, command).exit_code == 0
    # A handful of pictures can be separable, and their calibration as steep as a float allows.
    for fold in (trial / "fold-1" / "bundle", trial / "fold-2" / "bundle"):
        manifest = open_bundle(fold).manifest
        write_manifest(fold, manifest.model_copy(update={"calibration": PlattScaling(offset=0.1)}))
    assert CliRunner().invoke(main, command).exit_code == 0
    shutil.copytree(trial / "fold-1" / "bundle", bundle := tmp_path / "bundle")
    before = open_bundle(bundle)
    calibrate = ["train", "calibrate", str(bundle), "--crossvalidation", str(trial)]
    result = CliRunner().invoke(main, calibrate)
    assert result.exit_code == 0, result.output
    assert all(each.name in result.output for each in DEGRADATIONS)
    after = open_bundle(bundle)
    assert after.digest != before.digest
    slope = after.manifest.calibration.slope
    # What the new calibration adds to log-odds of the folds, which are the logits plus 0.1.
    offset = after.manifest.calibration.offset - slope * 0.1
    scored = [json.loads(line)["score"] for line in (trial / "conditions.jsonl").read_text().splitlines()]
    assert len(scored) == 24 * (1 + len(DEGRADATIONS))
    for score in scored:
        probability = 1 / (1 + np.exp(-(slope * (score["logit"] + 0.1) + offset)))
        assert probability < after.manifest.thresholds.generated_from
    again = CliRunner().invoke(main, calibrate)
    assert again.exit_code == 2
    assert "already" in " ".join(again.output.split())
    manifest = before.manifest
    views = manifest.preprocessing.model_copy(update={"views": 4})
    write_manifest(bundle, manifest.model_copy(update={"preprocessing": views}))
    refused = CliRunner().invoke(main, calibrate)
    assert refused.exit_code == 2
    assert "other views" in " ".join(refused.output.split())


def test_the_ensemble_of_two_trials_is_measured_without_training(corpus: Path, tmp_path: Path) -> None:
    """Its log-odds are the mean of those of the trials; one trial is no ensemble."""
    tiny = ["--size", "32", "--views", "1", "--batch", "4", "--max-steps", "1", "--folds", "2"]
    logits = []
    for name, feature, more in (
        ("npr", "npr", []),
        ("counts", "rgb", ["--classifier", "cooccurrences", "--bank", "1"]),
        ("both", "dnf", ["--ensemble", str(tmp_path / "npr"), "--ensemble", str(tmp_path / "counts")]),
    ):
        command = ["crossvalidate", str(corpus), "--feature", feature, "--out", str(tmp_path / name)]
        result = CliRunner().invoke(main, [*command, *tiny, *more])
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / name / "crossvalidation.json").read_text())
        logits.append(np.array([picture["logit"] for picture in report["pictures"]]))
    # Stored in float16, a calibration as steep as a float allows has little left of its digits.
    np.testing.assert_allclose(logits[2], (logits[0] + logits[1]) / 2, rtol=0.05, atol=0.05)
    alone = ["crossvalidate", str(corpus), *tiny, "--ensemble", str(tmp_path / "npr")]
    refused = CliRunner().invoke(main, [*alone, "--out", str(tmp_path / "alone")])
    assert refused.exit_code == 2
    assert "two or more" in " ".join(refused.output.split())
