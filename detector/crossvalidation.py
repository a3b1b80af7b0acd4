"""Cross-validation that leaves out whole generators: how well a recipe does on what it never saw.

Every picture is scored by a network that was trained without its generator, its source and its group. The
matched figure compares pictures of like content only, so that it does not rise with what they show.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from detector.benchmark.speed import flops_per_picture
from detector.bundle.files import MANIFEST_FILE, Bundle, open_bundle
from detector.corpus.corpus import CorpusRejectedError, Sample, training_split
from detector.corpus.folds import Fold, LeaveOut, folds
from detector.detector import Detector, Dtype
from detector.evaluation.held_out import Figures, MatchedRanking, ScoredSample, auroc_of, figures
from detector.metrics import Interval, Ranking, intervals
from detector.networks.unet import Unet
from detector.progress import Progress
from detector.scoring import ScoreJournal, score_samples
from detector.training.assembly import assemble, augmented_square, fuse
from detector.training.classifier import train_classifier
from detector.training.recipe import ClassifierRecipe

REPORT_FILE = "crossvalidation.json"
_SUMMARY_FILE, _BUNDLE = "fold.json", "bundle"
log = structlog.get_logger(__name__)


class CrossvalidationError(ValueError):
    """The folder belongs to another cross-validation."""


@dataclass(frozen=True)
class Cost:
    """What one picture costs, and the size of a bundle."""

    #: GFLOP of all views, two for each multiply-add, as PyTorch counts them.
    gflop: float
    views: int
    #: Bytes of the bundle's weights.
    weight_bytes: int


@dataclass(frozen=True)
class FoldResult:
    """One fold: what was trained on and held out, and how it went."""

    training: int
    held_out: int
    steps: int
    #: Minutes of training in this run; 0 when the fold was finished before.
    minutes: float
    #: AUROC on held-out pictures of known generators, 0..1; None for an ensemble.
    validation_auroc: float | None
    #: AUROC on the held-out pictures, 0..1.
    auroc: float


@dataclass(frozen=True)
class Crossvalidation:
    """The result of one cross-validation."""

    recipe: dict[str, Any]
    leave_out: LeaveOut
    cost: Cost
    figures: Figures
    folds: list[FoldResult]
    #: Path, fold, label, content, calibrated log-odds and logits of the views of each picture.
    pictures: list[dict[str, Any]]


@dataclass(frozen=True)
class _Training:
    """What all folds share."""

    unet: Unet | None
    recipe: ClassifierRecipe
    bank: Path
    samples: list[Sample]


def crossvalidate(
    samples: Sequence[Sample],
    unet: Unet | None,
    recipe: ClassifierRecipe,
    folder: Path,
    *,
    count: int = 4,
    leave_out: LeaveOut = "generators",
    dtype: Dtype = "auto",
    bank: Path | None = None,
) -> Crossvalidation:
    """Train and score `count` folds in `folder`, and write the result there; an interrupted run continues.

    Held-out pictures get one draw of the mild chain, the same in every run, so that all have one history.
    The U-Net is the same for all folds: it must not have seen the photographs. All folds share a `bank` of
    crops, if the recipe has one, by default in `folder`. Raises `CorpusRejectedError`
    when a fold lacks a class, and `CrossvalidationError` when the folder holds other folds or another recipe.
    """
    training = _Training(unet, recipe, bank or folder / "bank", list(samples))
    return _crossvalidated(
        samples,
        folder,
        _described(recipe),
        lambda fold, number, place: _trained(fold, number, training, place),
        count=count,
        leave_out=leave_out,
        device=recipe.device,
        dtype=dtype,
    )


def crossvalidate_ensemble(
    samples: Sequence[Sample],
    trials: Sequence[Path],
    folder: Path,
    *,
    device: str = "cpu",
    dtype: Dtype = "auto",
) -> Crossvalidation:
    """Score the ensembles of the folds of finished cross-validations, and write the result in `folder`.

    Nothing is trained. Raises `CrossvalidationError` when the trials are not of these pictures and folds, and
    `FusionRejectedError` when their classifiers do not fit together.
    """
    reports = [finished_report(trial) for trial in trials]
    leave_out, count = reports[0]["leave_out"], len(reports[0]["folds"])
    divided = {
        str(s.path): n for n, fold in enumerate(folds(samples, count, leave_out), 1) for s in fold.held_out
    }
    for trial, report in zip(trials, reports, strict=True):
        if {picture["path"]: picture["fold"] for picture in report["pictures"]} != divided:
            raise CrossvalidationError(f"{trial} holds a cross-validation of other pictures or folds")

    def fused(fold: Fold, number: int, place: Path) -> tuple[Bundle, FoldResult]:
        result = FoldResult(
            training=len(fold.training),
            held_out=len(fold.held_out),
            steps=sum(report["folds"][number - 1]["steps"] for report in reports),
            minutes=0.0,
            validation_auroc=None,
            auroc=math.nan,
        )
        if (place / _BUNDLE / MANIFEST_FILE).exists():
            return open_bundle(place / _BUNDLE), result
        parts = [open_bundle(trial / f"fold-{number}" / _BUNDLE) for trial in trials]
        return fuse(parts, place / _BUNDLE, name=f"fold-{number}", version="1"), result

    described = {"ensemble": [report["recipe"] for report in reports]}
    return _crossvalidated(
        samples, folder, described, fused, count=count, leave_out=leave_out, device=device, dtype=dtype
    )


def _crossvalidated(
    samples: Sequence[Sample],
    folder: Path,
    recipe: dict[str, Any],
    trained: Callable[[Fold, int, Path], tuple[Bundle, FoldResult]],
    *,
    count: int,
    leave_out: LeaveOut,
    device: str,
    dtype: Dtype,
) -> Crossvalidation:
    """Score each fold by the bundle that `trained` returns for it, its number and its folder."""
    divided = folds(samples, count, leave_out)
    _claim(folder, samples, recipe, f"{count} {leave_out}")
    scored: list[ScoredSample] = []
    results: list[FoldResult] = []
    cost: Cost | None = None
    for number, fold in enumerate(divided, start=1):
        place = folder / f"fold-{number}"
        bundle, summary = trained(fold, number, place)
        detector = Detector.load(bundle, device=device, dtype=dtype)
        cost = cost or cost_of(bundle)
        own = _scores(detector, fold, place, number)
        results.append(replace(summary, auroc=auroc_of(own).value))
        log.info("fold_scored", fold=number, **asdict(results[-1]))
        scored += own
    if cost is None:
        raise CorpusRejectedError("there are no folds")
    result = Crossvalidation(
        recipe=recipe,
        leave_out=leave_out,
        cost=cost,
        figures=figures(scored),
        folds=results,
        pictures=[
            {
                "path": str(item.sample.path),
                "fold": item.fold,
                "generated": item.sample.generated,
                "content": item.sample.content,
                "logit": item.logit,
                "views": item.views,
            }
            for item in scored
        ],
    )
    (folder / REPORT_FILE).write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    return result


def cost_of(bundle: Bundle) -> Cost:
    """Count the operations of one picture with PyTorch's own layers."""
    return Cost(
        gflop=round(flops_per_picture(bundle) / 1e9, 2),
        views=bundle.manifest.preprocessing.views,
        weight_bytes=sum(path.stat().st_size for path in bundle.folder.rglob("*.safetensors")),
    )


@dataclass(frozen=True)
class Margin:
    """How much higher one cross-validation is than another, on the same resampled pictures."""

    pooled: Interval
    matched: Interval | None


def margin(own: Crossvalidation, folder: Path) -> Margin:
    """Compare a result with that in another folder. Raises `CrossvalidationError` for other pictures."""
    report = finished_report(folder)
    others = {picture["path"]: float(picture["logit"]) for picture in report["pictures"]}
    paths = [picture["path"] for picture in own.pictures]
    if set(paths) != set(others):
        raise CrossvalidationError(f"{folder} holds a cross-validation of other pictures")
    labels = np.array([int(picture["generated"]) for picture in own.pictures])
    contents = np.array([picture["content"] for picture in own.pictures])
    scores = (
        np.array([picture["logit"] for picture in own.pictures]),
        np.array([others[path] for path in paths]),
    )
    first, second = (Ranking(values, labels) for values in scores)
    pooled = intervals({"margin": lambda counts: first.auroc(counts) - second.auroc(counts)}, labels)
    mine, theirs = (MatchedRanking(values, labels, contents) for values in scores)
    if not mine.rankings:
        return Margin(pooled["margin"], None)
    matched = intervals({"margin": lambda counts: mine.auroc(counts) - theirs.auroc(counts)}, mine.strata)
    return Margin(pooled["margin"], matched["margin"])


def finished_report(folder: Path) -> dict[str, Any]:
    """Return the report in a folder. Raises `CrossvalidationError` where there is none."""
    try:
        report: dict[str, Any] = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CrossvalidationError(f"{folder} has no finished cross-validation: {error}") from error
    return report


def _trained(fold: Fold, number: int, training: _Training, folder: Path) -> tuple[Bundle, FoldResult]:
    """Train one fold and calibrate it on groups held out of its own training, or return what is finished."""
    summary, finished = folder / _SUMMARY_FILE, folder / _BUNDLE
    if summary.exists() and (finished / MANIFEST_FILE).exists():
        return open_bundle(finished), FoldResult(**json.loads(summary.read_text(encoding="utf-8")))
    split = training_split(fold.training)
    log.info("fold_started", fold=number, training=len(split.training), held_out=len(fold.held_out))
    began = time.monotonic()
    unet, recipe = training.unet, training.recipe
    trained = train_classifier(
        unet,
        split.training,
        split.validation,
        folder / "work",
        recipe,
        bank=training.bank,
        banked=training.samples,
    )
    minutes = (time.monotonic() - began) / 60
    bundle = assemble(
        unet,
        trained.network,
        split.validation,
        finished,
        recipe,
        name=f"fold-{number}",
        version="1",
        provenance={"classifier_steps": trained.steps},
        left_out=trained.left_out,
    )
    result = FoldResult(
        training=len(split.training),
        held_out=len(fold.held_out),
        steps=trained.steps,
        minutes=round(minutes, 1),
        validation_auroc=trained.validation_auroc,
        auroc=math.nan,
    )
    summary.write_text(json.dumps(asdict(result)) + "\n", encoding="utf-8")
    return bundle, result


def _scores(detector: Detector, fold: Fold, folder: Path, number: int) -> list[ScoredSample]:
    manifest = detector.bundle.manifest
    progress = Progress("pictures_scored", len(fold.held_out), fold=number)
    scored = score_samples(
        detector,
        fold.held_out,
        augmented_square(manifest.preprocessing.size),
        journal=ScoreJournal(folder / "scores.jsonl"),
        progress=progress.advance,
    )
    slope, offset = manifest.calibration.slope, manifest.calibration.offset
    return [
        ScoredSample(sample, number, unit, slope * item.logit + offset, item.probability, item.views)
        for sample, unit, item in zip(fold.held_out, fold.units, scored, strict=True)
    ]


def _described(recipe: ClassifierRecipe) -> dict[str, Any]:
    """Return the recipe's fields that the result depends on, as JSON values."""
    return {
        name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value
        for name, value in vars(recipe).items()
        if name not in {"device", "loaders", "report_seconds"}
    }


def _claim(folder: Path, samples: Sequence[Sample], recipe: dict[str, Any], division: str) -> None:
    """Note in `folder` what is validated there. Raises `CrossvalidationError` when that is something else."""
    identities = sorted(
        (str(s.path), s.generated, s.family, s.group, s.origin, s.content, s.generator) for s in samples
    )
    text = repr((identities, recipe, division))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "recipe.txt"
    if note.exists() and note.read_text(encoding="utf-8").split()[0] != digest:
        raise CrossvalidationError(
            f"{folder} holds a cross-validation of other pictures or of another recipe"
        )
    note.write_text(f"{digest} {recipe}\n", encoding="utf-8")
