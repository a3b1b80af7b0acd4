"""Checks of files on disk, in batches; the next batch is read while the networks run on this one."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detector.detector import Detector, Finding
from detector.evaluation.stability import stable_verdict
from detector.images.decode import PICTURE_SUFFIXES, ImageReason, ImageRejectedError, decode
from detector.images.views import PreparedPicture
from detector.policy import VerdictName, decide

FileReason = Literal[ImageReason, "unreadable"]

_READERS = min(4, os.cpu_count() or 1)
_SIGNAL_SECONDS = 0.2


@dataclass(frozen=True)
class CheckedFile:
    """A file with a verdict."""

    path: Path
    #: Of its bytes, in hex.
    sha256: str
    verdict: VerdictName
    finding: Finding
    #: Pixels.
    width: int
    #: Pixels.
    height: int
    #: Name of the file format.
    format: str
    #: The picture (H, W, 3), if it was to be kept.
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)


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


def check_batches(
    detector: Detector,
    paths: Iterable[Path],
    *,
    batch_size: int = 1,
    stability: bool = False,
    keep_pixels: bool = False,
) -> Iterator[list[CheckedFile | RejectedFile]]:
    """Check files `batch_size` at once and yield the results of each batch, in the order of the files.

    With `stability` each picture is examined alone with its re-encodings, and a verdict that they change
    becomes *review*.
    """
    remaining = iter(paths)
    size, keep = (1, True) if stability else (batch_size, keep_pixels)
    pool = ThreadPoolExecutor(_READERS)

    def reading() -> list[Future[_ReadFile | RejectedFile]]:
        return [pool.submit(_read, path, detector, keep=keep) for path in islice(remaining, size)]

    try:
        batch = reading()
        while batch:
            following = reading()
            # A signal that comes just before a wait without a limit would take effect only after it.
            while wait(batch, _SIGNAL_SECONDS).not_done:
                pass
            read = [future.result() for future in batch]
            yield list(_checked(detector, read, stability=stability))
            batch = following
    finally:
        # An interrupt waits for no file of the next batch.
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _ReadFile:
    path: Path
    sha256: str
    width: int
    height: int
    format: str
    prepared: PreparedPicture
    pixels: NDArray[np.uint8] | None


def _read(path: Path, detector: Detector, *, keep: bool) -> _ReadFile | RejectedFile:
    try:
        data = path.read_bytes()
        picture = decode(data)
        prepared = detector.prepare(picture)
    except ImageRejectedError as rejected:
        return RejectedFile(path, rejected.reason, str(rejected))
    except OSError as error:
        return RejectedFile(path, "unreadable", f"The file cannot be read: {error.strerror}.")
    except MemoryError:
        return RejectedFile(path, "unreadable", "There is no memory for the picture.")
    return _ReadFile(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        width=picture.width,
        height=picture.height,
        format=picture.format,
        prepared=prepared,
        pixels=picture.pixels if keep else None,
    )


def _checked(
    detector: Detector, files: list[_ReadFile | RejectedFile], *, stability: bool
) -> Iterator[CheckedFile | RejectedFile]:
    thresholds = detector.bundle.manifest.thresholds
    readable = [file for file in files if isinstance(file, _ReadFile)]
    findings = iter([] if stability else detector.examine([file.prepared for file in readable]))
    for file in files:
        if isinstance(file, RejectedFile):
            yield file
            continue
        if stability and file.pixels is not None:
            stable = stable_verdict(detector, file.pixels, thresholds)
            verdict, finding = stable.verdict, stable.finding
        else:
            finding = next(findings)
            verdict = decide(finding.probability, thresholds, finding.doubt)
        yield CheckedFile(
            path=file.path,
            sha256=file.sha256,
            verdict=verdict,
            finding=finding,
            width=file.width,
            height=file.height,
            format=file.format,
            pixels=file.pixels,
        )
