"""dnf-detector evaluate."""

import importlib
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detector.bundle.files import Bundle, record_figures, resolve
from detector.cli.errors import WrongUsageError, plain_errors
from detector.cli.loading import device_option, dtype_option, load
from detector.cli.sections import SectionedCommand, section
from detector.corpus.corpus import CorpusRejectedError, Sample, read_corpus, split_names
from detector.corpus.origins import Origins
from detector.detector import Detector, Dtype
from detector.progress import Progress as LoggedProgress
from detector.terminal import Console, echo

if TYPE_CHECKING:
    from detector.evaluation.conditions import Extent
    from detector.evaluation.evaluation import SplitEvaluation
    from detector.training.baselines import Baseline

_PIPE_WIDTH = 160
_TRAINABLE = ("rgb", "npr")
# These can only be given: the noise feature of an ensemble alone, and the paper's recipe.
_BASELINES = (*_TRAINABLE, "dnf", "paper")
_UNDIVIDED = "all"
#: Scores of an interrupted evaluation, in the folder of the report.
_JOURNAL_FILE = "scores.jsonl"


class _EvaluateCommand(SectionedCommand):
    """A command that keeps its arguments as typed, for the report."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)


@click.command(
    cls=_EvaluateCommand,
    epilog="""\b
Examples:
  dnf-detector evaluate default CORPUS --limit 200
  dnf-detector evaluate mine CORPUS --split test --baseline rgb --baseline npr --out report
""",
)
@click.argument("bundle")
@click.argument("corpus", type=click.Path(exists=True, path_type=Path, file_okay=False))
@section(
    "Pictures",
    click.option(
        "--split", "splits", multiple=True, help="May be repeated; default: every split except train."
    ),
    click.option(
        "--limit", type=click.IntRange(min=10), help="Maximum pictures of each split, stratified by family."
    ),
    click.option(
        "--trained-on",
        multiple=True,
        metavar="SPLIT",
        help="Split that the bundle was trained on, if it does not record what it saw; may be repeated.",
    ),
    click.option(
        "--condition-limit",
        type=click.IntRange(min=10),
        help="Maximum pictures for controls, robustness and stability, stratified by family.",
    ),
)
@section(
    "What to measure",
    click.option(
        "--robustness",
        type=click.Choice(["none", "quick", "full"]),
        help="Strengths of each degradation: two, or five and six; default: quick with --out, else none.",
    ),
    click.option("--stability", is_flag=True, help="Gains and costs of the stability check."),
    click.option(
        "--baseline",
        "trained",
        multiple=True,
        type=click.Choice(_TRAINABLE),
        help="Train it in --out and compare with it; may be repeated.",
    ),
    click.option(
        "--baseline-bundle",
        "given",
        multiple=True,
        metavar="NAME=BUNDLE",
        help="Compare with this bundle; may be repeated.",
    ),
)
@section(
    "Output",
    click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the report and its plots."
    ),
    click.option("--record", metavar="NAME", help="Store the overall figures in the bundle's manifest."),
)
@section(
    "Machine",
    device_option,
    dtype_option,
)
@click.pass_context
def evaluate(
    context: click.Context,
    bundle: str,
    corpus: Path,
    *,
    splits: tuple[str, ...],
    limit: int | None,
    condition_limit: int | None,
    trained_on: tuple[str, ...],
    robustness: "Extent | None",
    stability: bool,
    trained: tuple["Baseline", ...],
    given: tuple[str, ...],
    out: Path | None,
    record: str | None,
    device: str,
    dtype: Dtype,
) -> None:
    """Measure a bundle on a labelled corpus: families, format controls, robustness.

    With --out it writes report.html, report.json and figures.md, and continues an interrupted run. A baseline
    is the same classifier, trained for the same number of steps on the picture itself (rgb) or on residuals
    of neighbouring pixels (npr).
    """
    if record and limit:
        raise WrongUsageError("--record stores figures of whole splits; leave --limit out")
    if out:
        _require_plotting()

    from detector.evaluation.evaluation import Plan, evaluate_split
    from detector.evaluation.report import JSON_FILE, Evaluation, split_tables, write_report
    from detector.scoring import ScoreJournal, ScoringError

    plan = Plan(robustness or ("quick" if out else "none"), stability, condition_limit)
    references = _baseline_references(given)
    samples = _samples(corpus, splits, limit)
    detector = load(bundle, device, dtype)
    origins = _origins(detector.bundle, corpus, trained_on)
    baselines = _baselines(trained, references, detector, samples=samples, corpus=corpus, out=out)
    typed: list[str] = context.meta["arguments"]
    evaluation = Evaluation(
        bundle=detector.bundle,
        device=detector.device,
        dtype=detector.dtype,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["dnf-detector", "evaluate", *typed]),
        limit=limit,
        splits=[],
    )
    journal = ScoreJournal(out / _JOURNAL_FILE if out else None)
    with _progress() as bar:
        for split, chosen in samples.items():
            advance = _advance(bar, split, plan.scores(chosen, len(baselines)))
            try:
                result = evaluate_split(
                    split,
                    detector,
                    chosen,
                    plan,
                    baselines=baselines,
                    trained=origins,
                    journal=journal,
                    progress=advance,
                )
            except (CorpusRejectedError, ScoringError) as error:
                raise WrongUsageError(str(error)) from error
            evaluation.splits.append(result)
            # Written after each split, so that an interruption loses only the split in progress.
            page = write_report(evaluation, corpus, out) if out else None
    journal.remove()
    # Rich would fold the tables to 80 columns in a pipe.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    for result in evaluation.splits:
        console.print(*split_tables(result), sep="\n")
    if page:
        echo(f"{page}: the report; {JSON_FILE} next to it has every figure")
    if record:
        _record(detector.bundle, record, evaluation.splits)


def _require_plotting() -> None:
    """Report a missing library before an hour of scoring, not after it."""
    for name in ("matplotlib", "jinja2"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise WrongUsageError(
                f"--out needs {name}: pip install 'dnf-moderation[training]'; without --out the tables are "
                "only printed"
            ) from error


def _baseline_references(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if any(name not in _BASELINES or not reference for name, _, reference in pairs):
        raise WrongUsageError(f"--baseline-bundle takes NAME=BUNDLE, NAME one of {', '.join(_BASELINES)}")
    return {name: reference for name, _, reference in pairs}


def _samples(corpus: Path, splits: tuple[str, ...], limit: int | None) -> dict[str, list[Sample]]:
    from detector.scoring import limited

    try:
        names = list(splits) or _splits_except_train(corpus)
        chosen = {name: read_corpus(corpus, name) for name in names} or {_UNDIVIDED: read_corpus(corpus)}
    except CorpusRejectedError as error:
        raise WrongUsageError(str(error)) from error
    for name, samples in chosen.items():
        if {sample.generated for sample in samples} != {True, False}:
            raise WrongUsageError(f"{name}: figures need pictures of both classes")
    return {name: limited(samples, limit) if limit else samples for name, samples in chosen.items()}


def _origins(bundle: Bundle, corpus: Path, trained_on: tuple[str, ...]) -> Origins | None:
    """Return what the bundle was trained on: as its manifest says, or as the named splits do."""
    recorded = bundle.manifest.provenance.get("training_origins")
    try:
        if trained_on:
            return Origins.of(sample for split in trained_on for sample in read_corpus(corpus, split))
        return Origins.parsed(recorded)
    except CorpusRejectedError as error:
        raise WrongUsageError(str(error)) from error


def _splits_except_train(corpus: Path) -> list[str]:
    names = split_names(corpus)
    if names == ["train"]:
        raise WrongUsageError(f"{corpus} has only the split train; measure on it with --split train")
    return [name for name in names if name != "train"]


def _baselines(
    trained: tuple["Baseline", ...],
    references: dict[str, str],
    detector: Detector,
    *,
    samples: dict[str, list[Sample]],
    corpus: Path,
    out: Path | None,
) -> dict[str, Detector]:
    """Load the given baselines, train the others in `out`, and return all by name."""
    measured = {sample.path for chosen in samples.values() for sample in chosen}
    bundles = {name: _given_baseline(name, reference) for name, reference in references.items()}
    for name in trained:
        if name in bundles:
            continue
        if not out:
            raise WrongUsageError(f"--baseline {name} is trained in --out; give it, or --baseline-bundle")
        bundles[name] = _trained_baseline(name, detector, corpus, out, measured=measured)
    return {
        name: load(bundle, detector.device, cast("Dtype", detector.dtype)) for name, bundle in bundles.items()
    }


def _given_baseline(name: str, reference: str) -> Bundle:
    with plain_errors():
        bundle = resolve(reference)
    manifest = bundle.manifest
    if name == "paper" and not manifest.dnf.quantise:
        raise WrongUsageError(f"--baseline-bundle paper: {reference} was not trained with --preset paper")
    if name not in {"paper", manifest.feature}:
        raise WrongUsageError(
            f"--baseline-bundle {name}: {reference} is a bundle on the feature {manifest.feature}"
        )
    return bundle


def _trained_baseline(
    name: "Baseline", detector: Detector, corpus: Path, out: Path, *, measured: set[Path]
) -> Bundle:
    from detector.training.baselines import BaselineRejectedError, baseline_bundle

    folder = out / "baselines" / name
    try:
        return baseline_bundle(
            name, detector.bundle, corpus, folder, measured=measured, device=detector.device
        )
    except BaselineRejectedError as error:
        raise WrongUsageError(f"--baseline {name}: {error}") from error


def _advance(bar: Progress, split: str, total: int) -> Callable[[int], None]:
    """Return what takes numbers of finished scores: the bar of a terminal, or log events in a pipe."""
    if bar.disable:
        return LoggedProgress("pictures_scored", total, split=split).advance
    return partial(bar.advance, bar.add_task(split, total=total))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("scores"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _record(bundle: Bundle, name: str, results: list["SplitEvaluation"]) -> None:
    for result in results:
        key = name if len(results) == 1 else f"{name}_{result.split.replace('-', '_')}"
        bundle = record_figures(bundle, key, result.overall.rounded())
        echo(f"{bundle.folder}: {key} recorded, digest {bundle.digest}")
