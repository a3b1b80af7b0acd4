"""Checks of files on disk, in batches."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from detector.detector import Detector, Finding
from detector.evaluation.stability import stable_verdict
from detector.images.decode import PICTURE_SUFFIXES, ImageReason, ImageRejectedError, Picture, decode
from detector.policy import VerdictName, decide

FileReason = Literal[ImageReason, "unreadable"]


@dataclass(frozen=True)
class CheckedFile:
    """A file with a verdict."""

    path: Path
    verdict: VerdictName
    finding: Finding
    #: Pixels.
    width: int
    #: Pixels.
    height: int
    #: Name of the file format.
    format: str


@dataclass(frozen=True)
class RejectedFile:
    """A file that has no verdict."""

    path: Path
    reason: FileReason
    #: The reason as a sentence for people.
    detail: str


def pictures_in(paths: Iterable[Path]) -> list[Path]:
    """Return the named files, and of folders, at any depth and sorted, the files with a picture's suffix."""
    listed: list[Path] = []
    for path in paths:
        if path.is_dir():
            listed += sorted(
                p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()
            )
        else:
            listed.append(path)
    return listed


def check_files(
    detector: Detector, paths: Iterable[Path], *, batch_size: int = 16, stability: bool = False
) -> Iterator[CheckedFile | RejectedFile]:
    """Check files in batches of `batch_size` and yield one result for each, in their order.

    With `stability` each picture is examined with its re-encodings, and a verdict that they change becomes
    *review*.
    """
    remaining = iter(paths)
    while batch := list(islice(remaining, 1 if stability else batch_size)):
        yield from _check_stable(detector, batch[0]) if stability else _check_batch(detector, batch)


def _check_batch(detector: Detector, paths: list[Path]) -> Iterator[CheckedFile | RejectedFile]:
    read = [_read(path) for path in paths]
    pictures = [item for item in read if isinstance(item, Picture)]
    prepared = [detector.prepare(picture.pixels) for picture in pictures]
    findings = iter(detector.examine(prepared))
    thresholds = detector.bundle.manifest.thresholds
    for path, item in zip(paths, read, strict=True):
        if isinstance(item, RejectedFile):
            yield item
        else:
            finding = next(findings)
            verdict = decide(finding.probability, thresholds)
            yield CheckedFile(path, verdict, finding, item.width, item.height, item.format)


def _check_stable(detector: Detector, path: Path) -> Iterator[CheckedFile | RejectedFile]:
    item = _read(path)
    if isinstance(item, RejectedFile):
        yield item
        return
    checked = stable_verdict(detector, item.pixels, detector.bundle.manifest.thresholds)
    yield CheckedFile(path, checked.verdict, checked.finding, item.width, item.height, item.format)


def _read(path: Path) -> Picture | RejectedFile:
    try:
        return decode(path.read_bytes())
    except ImageRejectedError as rejected:
        return RejectedFile(path, rejected.reason, str(rejected))
    except OSError as error:
        return RejectedFile(path, "unreadable", f"The file cannot be read: {error.strerror}.")
