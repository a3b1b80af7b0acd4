"""A labelled corpus on disk: a manifest.csv or one of the folder layouts, split so that nothing leaks."""

import csv
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import structlog

from detector.corpus.layouts import CorpusRejectedError, FolderLayout, read_layout
from detector.images.decode import ImageRejectedError, decode

__all__ = [
    "LAYOUTS",
    "MANIFEST_FILE",
    "CorpusRejectedError",
    "Layout",
    "Sample",
    "SkippedPicture",
    "TrainingSplit",
    "grouped_split",
    "read_corpus",
    "readable",
    "training_split",
]

Layout = Literal["auto", "manifest", FolderLayout]
LAYOUTS: tuple[str, ...] = get_args(Layout)

MANIFEST_FILE = "manifest.csv"
_REQUIRED = ("path", "label", "family")
# A corpus without splits is taken as training data, and never as somebody's test set.
_WITHOUT_SPLITS = (None, "train")

log = structlog.get_logger()


@dataclass(frozen=True)
class Sample:
    """One picture: `group` is shared by pictures that must fall on the same side of a validation split.

    `pair` is shared by a generated picture and the photograph that it was made from, empty without one.
    """

    path: Path
    generated: bool
    family: str
    group: str
    pair: str = ""


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that cannot be decoded: `reason` is one of `ImageReason` or "unreadable"."""

    sample: Sample
    reason: str
    detail: str


def read_corpus(folder: Path, split: str | None = None, layout: Layout = "auto") -> list[Sample]:
    """List a corpus's pictures, sorted by path, those of `split` where the corpus has splits.

    With `layout` "auto" a manifest.csv is read if there is one, else the folders say which layout they
    follow. A corpus without splits is read whole, for None and "train" only. Raises
    `CorpusRejectedError` when the layout is unknown or ambiguous, a row of the manifest is wrong, the split
    is not there, or a family has pictures of both classes.
    """
    if layout not in LAYOUTS:
        raise CorpusRejectedError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    manifest = folder / MANIFEST_FILE
    if layout == "manifest" or (layout == "auto" and manifest.exists()):
        listed = list(_manifest_rows(manifest, split))
    else:
        listed = [
            (Sample(p.path, p.generated, p.family, p.group or str(p.path)), p.split)
            for p in read_layout(folder, None if layout == "auto" else layout)
        ]
    samples = sorted(_of_split(listed, split, folder), key=lambda sample: sample.path)
    of_reals = {sample.family for sample in samples if not sample.generated}
    both = of_reals.intersection(sample.family for sample in samples if sample.generated)
    if both:
        raise CorpusRejectedError(
            f"the family {min(both)} in {folder} has real and generated pictures: a family is one generator "
            "or one source of photographs"
        )
    return samples


def readable(samples: Iterable[Sample]) -> tuple[list[Sample], list[SkippedPicture]]:
    """Decode every picture once; return the samples that a training can use, and the others with reasons.

    Each skipped picture is also a warning event `picture_skipped`. Raises
    `CorpusRejectedError` when none is left.
    """
    kept: list[Sample] = []
    skipped: list[SkippedPicture] = []
    for sample in samples:
        try:
            decode(sample.path.read_bytes())
        except ImageRejectedError as error:
            skipped.append(SkippedPicture(sample, error.reason, str(error)))
        except OSError as error:
            detail = f"The file cannot be read: {error.strerror}."
            skipped.append(SkippedPicture(sample, "unreadable", detail))
        else:
            kept.append(sample)
    for picture in skipped:
        path = str(picture.sample.path)
        log.warning("picture_skipped", path=path, reason=picture.reason, detail=picture.detail)
    if not kept:
        raise CorpusRejectedError(f"none of the {len(skipped)} pictures can be decoded")
    return kept, skipped


def grouped_split(samples: list[Sample], *, every: int = 12) -> tuple[list[Sample], list[Sample]]:
    """Split into training and validation: within each family every `every`-th group is held out.

    Pictures of a pair share a group and stay together.
    """
    held_out: set[str] = set()
    for family in sorted({sample.family for sample in samples}):
        groups = sorted({sample.group for sample in samples if sample.family == family} - held_out)
        paired = {sample.group for sample in samples if sample.family != family}
        held_out.update([group for group in groups if group not in paired][every // 2 :: every])
        held_out.update([group for group in groups if group in paired and _bucket(group, every) == 0])
    return (
        [sample for sample in samples if sample.group not in held_out],
        [sample for sample in samples if sample.group in held_out],
    )


@dataclass(frozen=True)
class TrainingSplit:
    """What to train on, and what to choose a checkpoint by and to calibrate on; no group is on both sides.

    `validation` has held-out pictures of the families of training, and the families that were held out whole.
    """

    training: list[Sample]
    validation: list[Sample]


def training_split(samples: list[Sample], held_out_families: Collection[str] = ()) -> TrainingSplit:
    """Split as `grouped_split` does, with whole families held out, and what shares a group with them.

    Raises `CorpusRejectedError` when there is no such family.
    """
    if unknown := set(held_out_families) - {sample.family for sample in samples}:
        raise CorpusRejectedError(f"there is no family {min(unknown)} to hold out")
    held_out = [sample for sample in samples if sample.family in held_out_families]
    groups = {sample.group for sample in held_out}
    training, validation = grouped_split([sample for sample in samples if sample.group not in groups])
    return TrainingSplit(training, validation + held_out)


def _bucket(group: str, buckets: int) -> int:
    return sum(group.encode()) % buckets


def _of_split(listed: list[tuple[Sample, str | None]], split: str | None, folder: Path) -> list[Sample]:
    splits = sorted({own for _, own in listed if own})
    if not splits and split not in _WITHOUT_SPLITS:
        raise CorpusRejectedError(f"{folder} has no splits, so {split!r} cannot be chosen")
    samples = [sample for sample, own in listed if split is None or not splits or own == split]
    if not samples:
        raise CorpusRejectedError(
            f"{folder} has no pictures of split {split!r}; its splits: {', '.join(splits)}"
        )
    return samples


def _manifest_rows(manifest: Path, split: str | None) -> Iterator[tuple[Sample, str | None]]:
    """Yield the rows as samples with their split; files are looked for in the chosen split alone."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _REQUIRED if column not in (reader.fieldnames or ())]
            if missing:
                raise CorpusRejectedError(f"{manifest}, row 1: missing columns: {', '.join(missing)}")
            rows = list(reader)
    except OSError as error:
        raise CorpusRejectedError(f"{manifest} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorpusRejectedError(f"{manifest} is no CSV file in UTF-8: {error}") from error
    if not rows:
        raise CorpusRejectedError(f"{manifest} has no rows below the names of its columns")
    has_splits = any(row.get("split") for row in rows)
    seen: dict[Path, int] = {}
    samples: list[Sample] = []
    # Row 1 holds the names of the columns, as a spreadsheet counts.
    for number, row in enumerate(rows, start=2):
        sample = _row(row, manifest, number)
        first = seen.setdefault(sample.path, number)
        if first != number:
            raise CorpusRejectedError(
                f"{manifest}, row {number}: {row['path']} stands in row {first} already"
            )
        chosen = split is None or not has_splits or row.get("split") == split
        if chosen and not sample.path.is_file():
            raise CorpusRejectedError(f"{manifest}, row {number}: there is no file {row['path']}")
        samples.append(sample)
    yield from zip(_joined(samples), [row.get("split") for row in rows], strict=True)


def _row(row: dict[str, str | None], manifest: Path, number: int) -> Sample:
    place = f"{manifest}, row {number}"
    path, label = row["path"] or "", row["label"]
    if label not in {"real", "generated"}:
        raise CorpusRejectedError(f"{place}: the label {label!r} is neither real nor generated")
    inside = Path(os.path.normpath(path))
    if not path or inside.is_absolute() or inside.parts[:1] == ("..",):
        raise CorpusRejectedError(f"{place}: the path {path!r} is not inside {manifest.parent}")
    pair = row.get("pair") or ""
    return Sample(
        path=manifest.parent / inside,
        generated=label == "generated",
        family=row["family"] or label,
        group=row.get("group") or pair or path,
        pair=pair,
    )


def _joined(samples: list[Sample]) -> list[Sample]:
    """Give pictures that are linked by a group or by a pair, directly or not, one group."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := leader.get(name, name)) != name:
            name = above
        return name

    for sample in samples:
        if sample.pair:
            leader[find(sample.pair)] = find(sample.group)
    return [replace(sample, group=find(sample.group)) for sample in samples]
