"""dnf-detector evaluate: its page, its JSON file, its baselines and its usage errors."""

import csv
import json
import re
import shutil
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from detector.bundle.files import open_bundle, resolve, write_manifest
from detector.cli.evaluate import evaluate

# A page that does not escape this would contain it as markup.
FAMILY = "gan<b>&"


def run(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a corpus of three splits: noise is real, stripes are generated; a test picture is broken."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows: list[tuple[str, ...]] = []
    for split, count in (("train", 16), ("test-seen", 8), ("test-unseen", 6)):
        for index in range(count):
            noise = rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)
            stripes = np.tile((np.arange(80) // 4 % 2 * 200).astype(np.uint8)[None, :, None], (80, 1, 3))
            label, pixels = (("real", noise), ("generated", stripes + noise // 8))[index % 2]
            path = f"{split}-{index}.png"
            Image.fromarray(pixels).save(folder / path)
            rows.append((path, split, label, "camera" if label == "real" else FAMILY))
    (folder / "broken.png").write_text("not a picture")
    rows.append(("broken.png", "test-seen", "real", "camera"))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "split", "label", "family"), *rows])
    return folder


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Copy the tiny bundle with a recorded training of two steps of four pictures."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_bundle, folder)
    provenance = {"classifier_steps": 2, "classifier_batch": 4}
    write_manifest(folder, open_bundle(folder).manifest.model_copy(update={"provenance": provenance}))
    return folder


@dataclass(frozen=True)
class Report:
    """The output of one run."""

    printed: str
    page: str
    figures: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def report(corpus: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Evaluate the tiny bundle on all default splits, with everything but baselines."""
    out = tmp_path_factory.mktemp("report")
    result = run(tiny_bundle, corpus, "--out", out, "--stability", "--device", "cpu")
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "report.json").read_text())
    return Report(result.stdout, (out / "report.html").read_text(), figures, out)


def test_every_split_except_train_is_reported_separately(report: Report) -> None:
    """In the JSON file, on the page and in the terminal."""
    assert list(report.figures["splits"]) == ["test-seen", "test-unseen"]
    for split in ("test-seen", "test-unseen"):
        assert f"<h2>{split}:" in report.page
        assert f"{split}: format controls" in report.printed


def test_a_finished_evaluation_leaves_no_scores_of_an_interrupted_one(report: Report) -> None:
    """The folder has the report alone: the same command would measure again."""
    names = {path.name for path in report.folder.iterdir()}
    assert names == {"report.html", "report.json", "figures.md", "plots"}


def test_new_sources_and_new_generators_are_reported_apart(
    tiny_bundle: Path, tmp_path: Path, corpus: Path
) -> None:
    """By the columns of the manifest, and the split that the bundle was trained on."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    pictures = sorted(corpus.glob("train-*.png"))
    rows = [("path", "split", "label", "family", "source", "generator")]
    for index, (split, label, family, source, generator) in enumerate(
        [
            ("train", "real", "camera", "camera", ""),
            ("train", "generated", "sd-blog", "blog", "sd"),
            ("train", "generated", "mix", "forum", "flux+mj"),
            ("test", "real", "phone", "phone", ""),
            ("test", "real", "camera", "camera", ""),
            ("test", "generated", "sd-site", "site", "sd"),
            ("test", "generated", "sd-blog-2", "blog", "sd"),
            ("test", "generated", "gpt", "blog", "gpt"),
            ("test", "generated", "mj", "gallery", "mj"),
            ("test", "generated", "dalle", "press", "dalle"),
        ]
    ):
        (folder / f"{index}.png").symlink_to(pictures[index])
        rows.append((f"{index}.png", split, label, family, source, generator))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    out = tmp_path / "report"
    quick = ("--split", "test", "--robustness", "none", "--device", "cpu")
    result = run(tiny_bundle, folder, *quick, "--trained-on", "train", "--out", out)
    assert result.exit_code == 0, result.output
    split = json.loads((out / "report.json").read_text())["splits"]["test"]
    assert {row["family"]: row["seen"] for row in split["families"]} == {
        "phone": "neither",
        "camera": "source",
        "sd-site": "generator",
        "sd-blog-2": "both",
        "gpt": "source",
        "mj": "generator",
        "dalle": "neither",
    }
    assert {row["family"]: row["pictures"] for row in split["novelties"]} == {
        "new source of a known generator": 2,
        "new generator": 2,
    }
    assert "what the training saw" in (out / "report.html").read_text()
    unknown = run(tiny_bundle, folder, *quick)
    assert "new generator" not in unknown.output


def test_the_page_is_self_contained(report: Report) -> None:
    """It loads no script, style sheet, picture or font."""
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', report.page)
    assert len(sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"<script|<link|https?://|url\(|@import", report.page)


def test_the_page_says_what_was_measured_and_how(report: Report, tiny_bundle: Path) -> None:
    """The bundle and its digest, the device, the command as typed, what a score is, and what is uncertain."""
    for text in (
        "tiny 0",
        resolve(tiny_bundle).digest,
        "cpu, float32",
        f"dnf-detector evaluate {tiny_bundle}",
        "A score is a signal, not proof.",
        "fewer than 50 pictures",
        "1 file could not be decoded",
        "What the figures mean",
    ):
        assert text in report.page


def test_names_from_the_corpus_are_escaped_on_the_page(report: Report) -> None:
    """The name of a family cannot become markup."""
    assert FAMILY not in report.page
    assert "gan&lt;b&gt;&amp;" in report.page


def test_the_page_and_the_json_have_the_same_figures(report: Report) -> None:
    """The AUROC of each split and control; the terminal has them too."""
    for split in report.figures["splits"].values():
        auroc = f"{split['overall']['auroc']['value']:.3f}"
        assert f"<b>{auroc}</b>" in report.page
        assert auroc in report.printed
        for control in split["controls"]:
            assert f"{control['shift']['value']:+.3f}" in report.page


def test_every_figure_has_its_interval_in_the_json(report: Report) -> None:
    """Overall and for each family: value, low and high; those of the AUROC are in order."""
    seen = report.figures["splits"]["test-seen"]
    for figures in (seen["overall"], *(row["figures"] for row in seen["families"])):
        measured = {name: figure for name, figure in figures.items() if isinstance(figure, dict)}
        assert len(measured) == 13
        assert all(figure.keys() == {"value", "low", "high"} for figure in measured.values())
        assert figures["auroc"]["low"] <= figures["auroc"]["value"] <= figures["auroc"]["high"]


def test_each_pictures_score_is_in_the_json(report: Report) -> None:
    """By its path in the corpus; the broken picture is listed separately with its reason."""
    seen = report.figures["splits"]["test-seen"]
    assert {picture["path"] for picture in seen["pictures"]} == {f"test-seen-{i}.png" for i in range(8)}
    for picture in seen["pictures"]:
        assert picture.keys() == {"path", "family", "label", "logit", "probability"}
        assert picture["label"] == ("generated" if picture["family"] == FAMILY else "real")
    assert [item["path"] for item in seen["unreadable"]] == ["broken.png"]


def test_controls_curves_and_stability_are_measured(report: Report) -> None:
    """Four controls, six curves of two points besides the unchanged files, and both policies."""
    seen = report.figures["splits"]["test-seen"]
    assert [c["name"] for c in seen["controls"]] == ["alike", "swapped", "swapped_back", "lossless"]
    largest = max(seen["controls"], key=lambda control: abs(control["shift"]["value"]))
    assert seen["largest_shift"]["control"] == largest["name"]
    assert {curve["name"]: len(curve["points"]) for curve in seen["curves"]} == {
        "jpeg": 2,
        "webp": 2,
        "downscale": 3,
        "blur": 3,
        "noise": 3,
        "crop": 3,
    }
    without, checked = seen["stability"]["without"], seen["stability"]["checked"]
    assert checked["false_positive_rate"]["value"] <= without["false_positive_rate"]["value"]
    assert checked["reviewed"]["value"] >= without["reviewed"]["value"]
    assert seen["stability"]["scores"] == 4


def test_the_plots_are_pictures_beside_the_page(report: Report) -> None:
    """Four PNG files for each split."""
    plots = sorted(path.name for path in (report.folder / "plots").iterdir())
    names = ("reliability", "robustness", "roc", "scores")
    assert plots == [f"{split}-{name}.png" for split in ("test-seen", "test-unseen") for name in names]
    for name in plots:
        drawn = Image.open(BytesIO((report.folder / "plots" / name).read_bytes()))
        assert drawn.format == "PNG"
        assert min(drawn.size) > 300


def test_a_baseline_is_trained_once_with_the_bundles_budget(
    corpus: Path, own_bundle: Path, tmp_path: Path
) -> None:
    """The second run reuses it; its row has a margin, its network the bundle's shape with three channels."""
    arguments = [own_bundle, corpus, "--split", "test-unseen", "--out", tmp_path, "--robustness", "none"]
    digests = []
    for _ in range(2):
        result = run(*arguments, "--baseline", "npr", "--device", "cpu")
        assert result.exit_code == 0, result.output
        split = json.loads((tmp_path / "report.json").read_text())["splits"]["test-unseen"]
        own, baseline = split["comparison"]
        assert (own["name"], own["margin"], baseline["name"]) == ("this bundle", None, "npr")
        expected = own["auroc"]["value"] - baseline["auroc"]["value"]
        assert baseline["margin"]["value"] == pytest.approx(expected)
        digests.append(baseline["digest"])
    assert digests[0] == digests[1]
    trained = open_bundle(tmp_path / "baselines" / "npr" / "bundle").manifest
    assert trained.feature == "npr"
    assert trained.provenance["budget"]["steps"] == 2
    assert trained.preprocessing == open_bundle(own_bundle).manifest.preprocessing
    checkpoint = torch.load(tmp_path / "baselines" / "npr" / "work" / "training.pt", weights_only=True)
    assert len(checkpoint["record"]["losses"]) == 2
    given = ["--baseline-bundle", f"npr={tmp_path / 'baselines' / 'npr' / 'bundle'}"]
    again = run(own_bundle, corpus, "--split", "test-unseen", *given, "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert "the same classifier on other inputs" in again.stdout


def test_figures_are_recorded_for_each_split(corpus: Path, own_bundle: Path) -> None:
    """One split under the given name, several under the given name followed by the split's."""
    one = run(own_bundle, corpus, "--split", "test-seen", "--record", "seen", "--device", "cpu")
    assert one.exit_code == 0, one.output
    several = run(own_bundle, corpus, "--record", "own", "--device", "cpu")
    assert several.exit_code == 0, several.output
    recorded = resolve(own_bundle).manifest.figures
    assert recorded.keys() == {"seen", "own_test_seen", "own_test_unseen"}
    assert recorded["seen"] == recorded["own_test_seen"]
    assert {"real", "generated", "auroc", "auroc_low", "auroc_high", "false_positive_rate"} <= recorded[
        "seen"
    ].keys()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--record", "x", "--limit", "10"], "whole splits"),
        (["--baseline", "rgb"], "give it"),
        (["--baseline-bundle", "rgb"], "NAME=BUNDLE"),
        (["--baseline-bundle", "rgb=default"], "feature npr+npr+rgb"),
        (["--baseline-bundle", "paper=default"], "--preset paper"),
        (["--baseline-bundle", "rgb=no-such-bundle"], "not_found"),
        (["--split", "nowhere"], "nowhere"),
        (["--limit", "3"], "--limit"),
    ],
)
def test_wrong_usage_is_reported_with_its_reason(
    arguments: list[str], reason: str, corpus: Path, tiny_bundle: Path
) -> None:
    """Exit status 2, never a traceback."""
    result = run(tiny_bundle, corpus, *arguments)
    assert result.exit_code == 2, result.output
    assert reason in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_bundle_without_a_recorded_budget_cannot_have_a_baseline_trained(
    corpus: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The error names the alternative."""
    result = run(tiny_bundle, corpus, "--baseline", "rgb", "--out", tmp_path, "--device", "cpu")
    assert result.exit_code == 2
    assert "--baseline-bundle" in result.output


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_reported_before_anything_is_scored(
    missing: str, corpus: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to install it."""
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type] - the import system's own switch
    result = run(tiny_bundle, corpus, "--out", tmp_path)
    assert result.exit_code == 2
    assert missing in result.output
    assert "dnf-moderation[training]" in result.output


def test_a_corpus_with_only_a_train_split_is_rejected(
    corpus: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Unless the split is named: nobody measures on training pictures by accident."""
    with (corpus / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[1] in {"split", "train"}]
    for path in corpus.glob("train-*.png"):
        shutil.copy(path, tmp_path)
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    refused = run(tiny_bundle, tmp_path)
    assert refused.exit_code == 2
    assert "--split train" in refused.output
    measured = run(tiny_bundle, tmp_path, "--split", "train", "--device", "cpu")
    assert measured.exit_code == 0, measured.output


def test_a_corpus_without_splits_is_measured_as_a_whole(tiny_bundle: Path, tmp_path: Path) -> None:
    """In the folder layout, under the name `all`."""
    for index in range(8):
        place = tmp_path / ("real", "generated/gan")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    result = run(tiny_bundle, tmp_path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "all: 4 photographs, 4 generated pictures" in result.stdout
