"""dnf-detector evaluate."""

import csv
import importlib
import shlex
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from detector.bundle.files import Bundle
    from detector.corpus.corpus import Sample
    from detector.detector import Detector, Dtype
    from detector.evaluation.conditions import Extent
    from detector.evaluation.evaluation import SplitEvaluation
    from detector.training.baselines import Baseline

_WIDTH_OF_A_PIPE = 160
_BASELINES = ("rgb", "npr")
# An ensemble may also be set beside its own noise feature alone, and any beside the paper's recipe.
_RIVALS = (*_BASELINES, "dnf", "paper")
_WHOLE = "all"


class _RememberedCommand(click.Command):
    """A command that keeps its arguments as they were typed, for the page to show."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)


@click.command(cls=_RememberedCommand)
@click.argument("bundle")
@click.argument("corpus", type=click.Path(exists=True, path_type=Path, file_okay=False))
@click.option("--split", "splits", multiple=True, help="Repeatable; every split but train if not given.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="For report.html and .json.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto")
@click.option(
    "--robustness",
    type=click.Choice(["none", "quick", "full"]),
    help="Points on the curves: two each, or five and six. quick with --out, else none.",
)
@click.option("--stability", is_flag=True, help="What a check against re-encodings gains and costs.")
@click.option("--baseline", "baselines", multiple=True, type=click.Choice(_BASELINES), help="Repeatable.")
@click.option(
    "--baseline-bundle",
    "given",
    multiple=True,
    metavar="NAME=BUNDLE",
    help="Instead of training it in --out.",
)
@click.option("--limit", type=click.IntRange(min=10), help="Pictures of a split, families in proportion.")
@click.option(
    "--condition-limit",
    type=click.IntRange(min=10),
    help="Pictures for controls, curves and stability; families in proportion.",
)
@click.option("--record", metavar="NAME", help="Store the overall figures in the bundle's manifest.")
@click.pass_context
def evaluate(
    context: click.Context,
    bundle: str,
    corpus: Path,
    *,
    splits: tuple[str, ...],
    out: Path | None,
    device: str,
    dtype: "Dtype",
    robustness: "Extent | None",
    stability: bool,
    baselines: tuple["Baseline", ...],
    given: tuple[str, ...],
    limit: int | None,
    condition_limit: int | None,
    record: str | None,
) -> None:
    """Measure a bundle on a labelled corpus: families, format controls, robustness.

    With --out a page for people and a JSON file are written. The baselines are the same classifier with the
    same steps on the picture itself (rgb) or on the residuals of neighbouring pixels (npr).
    """
    if record and limit:
        raise click.UsageError("--record stores figures of whole splits; leave --limit out")
    if out:
        _need_plotting()

    from detector.corpus.corpus import CorpusRejectedError
    from detector.evaluation.evaluation import Plan, evaluate_split
    from detector.evaluation.report import JSON_FILE, Evaluation, split_tables, write_report
    from detector.evaluation.scoring import ScoringError

    plan = Plan(robustness or ("quick" if out else "none"), stability, condition_limit)
    rivals_given = _given_bundles(given)
    samples = _samples(corpus, splits, limit)
    detector = _load(bundle, device, dtype)
    rivals = _rivals(baselines, rivals_given, detector, samples=samples, corpus=corpus, out=out)
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
    with _progress() as progress:
        for split, chosen in samples.items():
            task = progress.add_task(split, total=plan.scores(chosen, len(rivals)))
            advance = partial(progress.advance, task)
            try:
                result = evaluate_split(split, detector, chosen, plan, baselines=rivals, progress=advance)
            except (CorpusRejectedError, ScoringError) as error:
                raise click.UsageError(str(error)) from error
            evaluation.splits.append(result)
            # After each split: what was measured is not lost when a later one is interrupted.
            page = write_report(evaluation, corpus, out) if out else None
    # A file or pipe has no width of its own to squeeze the columns into.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE)
    for result in evaluation.splits:
        console.print(*split_tables(result), sep="\n")
    if page:
        click.echo(f"{page}: the page; {JSON_FILE} beside it has every figure")
    if record:
        _record(detector.bundle, record, evaluation.splits)


def _need_plotting() -> None:
    """Find out before an hour of scoring, not after it, that the page cannot be made."""
    for name in ("matplotlib", "jinja2"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise click.UsageError(
                f"--out needs {name}: pip install 'dnf-moderation[training]'; without --out the tables are "
                "printed only"
            ) from error


def _given_bundles(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if any(name not in _RIVALS or not reference for name, _, reference in pairs):
        raise click.UsageError(f"--baseline-bundle takes NAME=BUNDLE, NAME one of {', '.join(_RIVALS)}")
    return {name: reference for name, _, reference in pairs}


def _samples(corpus: Path, splits: tuple[str, ...], limit: int | None) -> dict[str, list["Sample"]]:
    from detector.corpus.corpus import CorpusRejectedError, read_corpus
    from detector.evaluation.scoring import limited

    try:
        named = list(splits) or _splits_but_train(corpus)
        chosen = {name: read_corpus(corpus, name) for name in named} or {_WHOLE: read_corpus(corpus)}
    except CorpusRejectedError as error:
        raise click.UsageError(str(error)) from error
    for name, samples in chosen.items():
        if {sample.generated for sample in samples} != {True, False}:
            raise click.UsageError(f"{name}: figures need pictures of both classes")
    return {name: limited(samples, limit) if limit else samples for name, samples in chosen.items()}


def _splits_but_train(corpus: Path) -> list[str]:
    """Return the names of the corpus's splits without train, sorted; none where it has no splits."""
    from detector.corpus.corpus import MANIFEST_FILE, read_corpus
    from detector.corpus.layouts import read_layout

    manifest = corpus / MANIFEST_FILE
    if manifest.exists():
        read_corpus(corpus)  # a manifest that cannot be read is refused there, with a reason
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            found = {row.get("split") for row in csv.DictReader(file)}
    else:
        found = {picture.split for picture in read_layout(corpus)}
    names = sorted(name for name in found if name)
    if names == ["train"]:
        raise click.UsageError(f"{corpus} has no split but train; --split train measures on it all the same")
    return [name for name in names if name != "train"]


def _load(bundle: "Bundle | str", device: str, dtype: str) -> "Detector":
    from detector.bundle.files import BundleError
    from detector.detector import Detector

    try:
        return Detector.load(bundle, device=device, dtype=cast("Dtype", dtype))
    except BundleError as error:
        raise click.UsageError(f"{error.reason}: {error}") from error


def _rivals(
    baselines: tuple["Baseline", ...],
    given: dict[str, str],
    own: "Detector",
    *,
    samples: dict[str, list["Sample"]],
    corpus: Path,
    out: Path | None,
) -> dict[str, "Detector"]:
    """Load the baselines that are given, train the others in `out`, and return all by name."""
    measured = {sample.path for chosen in samples.values() for sample in chosen}
    bundles: dict[str, Bundle] = {}
    for name, reference in given.items():
        bundles[name] = _given_rival(name, reference)
    for baseline in baselines:
        if baseline in bundles:
            continue
        if not out:
            raise click.UsageError(
                f"--baseline {baseline} is trained in --out; give it, or --baseline-bundle"
            )
        bundles[baseline] = _trained_rival(baseline, own, corpus, out, measured=measured)
    return {name: _load(bundle, own.device, own.dtype) for name, bundle in bundles.items()}


def _given_rival(name: str, reference: str) -> "Bundle":
    from detector.bundle.files import BundleError, resolve

    try:
        bundle = resolve(reference)
    except BundleError as error:
        raise click.UsageError(f"--baseline-bundle {name}: {error.reason}: {error}") from error
    manifest = bundle.manifest
    if name == "paper" and not manifest.dnf.quantise:
        raise click.UsageError(f"--baseline-bundle paper: {reference} was not trained by --preset paper")
    if name not in {"paper", manifest.feature}:
        raise click.UsageError(
            f"--baseline-bundle {name}: {reference} is a bundle on the feature {manifest.feature}"
        )
    return bundle


def _trained_rival(
    name: "Baseline", own: "Detector", corpus: Path, out: Path, *, measured: set[Path]
) -> "Bundle":
    from detector.training.baselines import BaselineRejectedError, baseline_bundle

    folder = out / "baselines" / name
    try:
        return baseline_bundle(name, own.bundle, corpus, folder, measured=measured, device=own.device)
    except BaselineRejectedError as error:
        raise click.UsageError(f"--baseline {name}: {error}") from error


def _progress() -> Progress:
    # Progress is for a person at a terminal; a pipe gets the results alone.
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


def _record(bundle: "Bundle", name: str, results: list["SplitEvaluation"]) -> None:
    from detector.bundle.files import record_figures

    for result in results:
        under = name if len(results) == 1 else f"{name}_{result.split.replace('-', '_')}"
        bundle = record_figures(bundle, under, result.overall.rounded())
        click.echo(f"{bundle.folder}: {under} recorded, digest {bundle.digest}")
