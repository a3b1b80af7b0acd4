"""dnf-detector check: a verdict for each picture, as soon as it is there."""

import csv
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

import click
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from detector.cli.checking import CheckedFile, RejectedFile, check_batches, pictures_in
from detector.cli.errors import WrongUsageError
from detector.cli.loading import bundle_option, device_option, dtype_option, load, title
from detector.detector import Dtype
from detector.images.doubt import confidence
from detector.images.heatmap import heatmap
from detector.images.thumbnail import SUFFIX, dnf_thumbnail
from detector.terminal import INTERRUPTED, Console, echo, echo_fields, echo_json, escaped, json_line

_COLOURS = {"real": "green", "review": "yellow", "generated": "red", "rejected": "magenta"}
_CSV_COLUMNS = ("path", "verdict", "score", "views", "sha256", "rejected")
# A CPU is as fast with one picture at once, whose result is then there at once; a GPU is not.
_BATCH_ON_CPU, _BATCH = 1, 16
_HEATMAP_QUALITY = 90
# Of a picture's name and digest in the name of a file about it.
_NAME_BYTES, _DIGEST_LENGTH = 120, 16
_STANDARD_OUTPUT = Path("-")
_ROW = "{:<9}  {:>5}  {:>6}  {:>11}  {}"

_folder = click.Path(path_type=Path, file_okay=False)


@click.command(
    epilog="""\b
Examples:
  dnf-detector check photos/
  dnf-detector check photos/ --json | jq 'select(.verdict == "generated").path'
  dnf-detector check photos/ --csv scores.csv --heatmap heatmaps/
"""
)
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH..."
)
@bundle_option
@device_option
@dtype_option
@click.option(
    "--batch-size",
    type=click.IntRange(1, 512),
    help=f"Pictures at once; default: {_BATCH_ON_CPU} on a CPU, {_BATCH} elsewhere.",
)
@click.option(
    "--stability", is_flag=True, help="Send verdicts that a re-encoding changes to review; takes 4x as long."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per picture and line.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help=f"Write {', '.join(_CSV_COLUMNS)} here; - is standard output.",
)
@click.option("--thumbnails", type=_folder, help="Write the noise feature of each strongest view here.")
@click.option(
    "--heatmap", "heatmaps", type=_folder, help="Write each picture here, its views' scores over it."
)
def check(
    paths: tuple[Path, ...],
    *,
    bundle: str,
    device: str,
    dtype: Dtype,
    batch_size: int | None,
    stability: bool,
    as_json: bool,
    csv_file: Path | None,
    thumbnails: Path | None,
    heatmaps: Path | None,
) -> None:
    """Check files, and all pictures in folders; each result is printed and written as soon as it is there.

    In a pipe a result is a line: outcome, score, logit, path and reason of a rejection, separated by tabs.

    Exit status: 0 when every file has a verdict, 1 when any was rejected or a result cannot be written, 2
    for wrong usage, 130 after Ctrl-C, which loses no result that was computed.
    """
    if as_json and csv_file == _STANDARD_OUTPUT:
        raise WrongUsageError("--json and --csv - both write to standard output")
    files = pictures_in(paths)
    if not files:
        raise WrongUsageError("there are no pictures in these folders")
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        # Opened before the model is loaded, so that a mistake in them is reported at once.
        outputs = _files(stack, csv_file, thumbnails, heatmaps)
        detector = load(bundle, device, dtype)
        progress = stack.enter_context(_progress())
        task = progress.add_task("Checking", total=len(files))
        if csv_file != _STANDARD_OUTPUT:
            heading = f"{title(detector.bundle)} on {detector.device}, {detector.dtype}"
            outputs.append(_printer(progress, heading, as_json=as_json))
        interruption = stack.enter_context(Interruption())
        batches = check_batches(
            detector,
            files,
            batch_size=batch_size or (_BATCH_ON_CPU if detector.device == "cpu" else _BATCH),
            stability=stability,
            keep_pixels=heatmaps is not None,
        )
        try:
            for batch in batches:
                with interruption.deferred():
                    for result in batch:
                        for output in outputs:
                            output(result)
                        counts[_outcome(result)] += 1
                        progress.advance(task)
        except KeyboardInterrupt:
            progress.stop()
            echo(
                f"Interrupted: {counts.total()} of {len(files)} pictures were checked; their results are"
                " complete.",
                err=True,
            )
            sys.exit(INTERRUPTED)
    if sys.stdout.isatty():
        echo(f"{counts.total()} pictures: {', '.join(f'{counts[name]} {name}' for name in _COLOURS)}")
    sys.exit(int(counts["rejected"] > 0))


_Result = CheckedFile | RejectedFile
_Output = Callable[[_Result], None]


class Interruption:
    """The handler of Ctrl-C: what was computed is written before it takes effect."""

    def __init__(self) -> None:
        self._received = self._deferring = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        # A shell starts background jobs with the signal ignored.
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._received or not self._deferring:
            raise KeyboardInterrupt
        self._received = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the first Ctrl-C take effect at the end of the block; a second one takes effect at once."""
        self._deferring = True
        yield
        self._deferring = False
        if self._received:
            raise KeyboardInterrupt


def _progress() -> Progress:
    """Return the progress bar: for a person at a terminal; a pipe gets only the results."""
    terminal = sys.stdout.isatty()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pictures"),
        TimeRemainingColumn(),
        TextColumn("remaining"),
        console=Console(stderr=not terminal),
        transient=True,
        # Pictures may take seconds each.
        speed_estimate_period=300,
        disable=not (terminal or sys.stderr.isatty()),
    )


def _printer(progress: Progress, heading: str, *, as_json: bool) -> _Output:
    """Return what prints a result on standard output; a line on a terminal goes above the progress bar."""
    if not sys.stdout.isatty():
        return (lambda result: echo_json(_record(result))) if as_json else _echo_fields
    if as_json:
        return lambda result: progress.console.print(
            json_line(_record(result)), soft_wrap=True, markup=False, highlight=False
        )
    progress.console.print(Text(escaped(heading), "bold"), soft_wrap=True)
    progress.console.print(Text(_ROW.format("Verdict", "Score", "Logit", "Size", "Picture")), soft_wrap=True)
    return lambda result: progress.console.print(_row(result), soft_wrap=True)


def _echo_fields(result: _Result) -> None:
    outcome, score, logit, _, path, reason = _cells(result)
    echo_fields(outcome, score, logit, path, reason)


def _cells(result: _Result) -> tuple[str, str, str, str, str, str]:
    """Return outcome, score, logit, size, path and reason; empty where there is none."""
    if isinstance(result, RejectedFile):
        return "rejected", "", "", "", str(result.path), result.reason
    finding = result.finding
    size = f"{result.width}x{result.height}"
    return result.verdict, f"{finding.probability:.3f}", f"{finding.logit:+.2f}", size, str(result.path), ""


def _row(result: _Result) -> Text:
    outcome, *cells, path, reason = _cells(result)
    line = _ROW.format(outcome, *cells, escaped(f"{path}: {reason}" if reason else path))
    row = Text(line)
    row.stylize(_COLOURS[outcome], 0, len(outcome))
    return row


def _outcome(result: _Result) -> str:
    return "rejected" if isinstance(result, RejectedFile) else result.verdict


def _record(result: _Result) -> dict[str, Any]:
    if isinstance(result, RejectedFile):
        return {"path": str(result.path), "rejected": result.reason, "detail": result.detail}
    return {
        "path": str(result.path),
        "verdict": result.verdict,
        "score": result.finding.probability,
        "logit": result.finding.logit,
        "confidence": confidence(result.finding.doubt),
        "doubt": result.finding.doubt,
        "views": _views(result),
        "strongest_view": result.finding.strongest,
        "width": result.width,
        "height": result.height,
        "format": result.format,
        "sha256": result.sha256,
    }


def _views(checked: CheckedFile) -> list[dict[str, float]]:
    """Return the views as a verdict event has them."""
    return [
        {
            "x": view.place.x,
            "y": view.place.y,
            "width": view.place.width,
            "height": view.place.height,
            "score": round(view.probability, 4),
        }
        for view in checked.finding.views
    ]


def _files(
    stack: ExitStack, csv_file: Path | None, thumbnails: Path | None, heatmaps: Path | None
) -> list[_Output]:
    """Open what is written besides the printed results. Raises `WrongUsageError` where that is impossible."""
    outputs: list[_Output] = []
    try:
        if csv_file:
            outputs.append(_csv_output(csv_file, stack.enter_context(_opened(csv_file))))
        for folder, draw in ((thumbnails, _thumbnail), (heatmaps, _heatmap)):
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                outputs.append(_picture_output(folder, draw))
    except OSError as error:
        raise WrongUsageError(f"{error.filename}: {error.strerror}") from error
    return outputs


@contextmanager
def _opened(csv_file: Path) -> Iterator[IO[str]]:
    standard = csv_file == _STANDARD_OUTPUT
    target = sys.stdout.fileno() if standard else csv_file
    # Names that are not Unicode keep their bytes.
    file = open(  # noqa: SIM115 - closing it must not hide why a row could not be written
        target, "w", encoding="utf-8", errors="surrogateescape", newline="", closefd=not standard
    )
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


def _csv_output(name: Path, file: IO[str]) -> _Output:
    rows = csv.writer(file, lineterminator="\n")

    def write(row: Sequence[object]) -> None:
        with _reported(name):
            rows.writerow(row)
            file.flush()

    def add(result: _Result) -> None:
        # A terminal must not obey what a file's name says to it.
        path = escaped(str(result.path)) if file.isatty() else str(result.path)
        if isinstance(result, RejectedFile):
            write([path, "", "", "", "", result.reason])
        else:
            views = json.dumps(_views(result), separators=(",", ":"))
            write([path, result.verdict, result.finding.probability, views, result.sha256, ""])

    write(_CSV_COLUMNS)
    return add


def _picture_output(folder: Path, draw: Callable[[CheckedFile], bytes]) -> _Output:
    def add(result: _Result) -> None:
        if isinstance(result, CheckedFile):
            file = folder / picture_name(result.path, result.sha256)
            with _reported(file):
                file.write_bytes(draw(result))

    return add


def picture_name(path: Path, sha256: str) -> str:
    """Return the name of a file about the picture at `path`: the same for the same name and bytes only.

    It has no separators, begins with a letter, digit or underscore, and is short enough for file systems.
    """
    stem = re.sub(r"[^\w.-]", "_", path.stem).lstrip(".-").encode()[:_NAME_BYTES].decode(errors="ignore")
    return f"{stem or 'picture'}-{sha256[:_DIGEST_LENGTH]}{SUFFIX}"


def _thumbnail(checked: CheckedFile) -> bytes:
    return dnf_thumbnail(checked.finding.dnf)


def _heatmap(checked: CheckedFile) -> bytes:
    if checked.pixels is None:
        raise ValueError("the pixels were not kept")
    finding = checked.finding
    views = [(view.place, view.probability) for view in finding.views]
    file = BytesIO()
    Image.fromarray(heatmap(checked.pixels, views, finding.strongest)).save(
        file, "JPEG", quality=_HEATMAP_QUALITY
    )
    return file.getvalue()


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Report in one line that a file cannot be written; a reader of a pipe that went away is no error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error
