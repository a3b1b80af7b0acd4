"""A labelled corpus on disk, read from a manifest.csv or a folder layout and split without leaks."""

import csv
import os
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

import structlog

from detector.corpus.layouts import CorpusRejectedError, FolderLayout, read_layout
from detector.images.decode import ImageRejectedError, decode
from detector.progress import Progress

__all__ = [
    "LAYOUTS",
    "MANIFEST_FILE",
    "CorpusRejectedError",
    "Layout",
    "Sample",
    "SkippedPicture",
    "TrainingSplit",
    "grouped_split",
    "linked",
    "read_corpus",
    "readable",
    "split_names",
    "training_split",
]

Layout = Literal["auto", "manifest", FolderLayout]
LAYOUTS: tuple[str, ...] = get_args(Layout)

MANIFEST_FILE = "manifest.csv"
_REQUIRED = ("path", "label", "family")
# A corpus without splits counts as training data, never as a test set.
_SPLITS_OF_UNDIVIDED = (None, "train")

log = structlog.get_logger(__name__)

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Sample:
    """One labelled picture."""

    path: Path
    generated: bool
    #: The generator, or the source of photographs.
    family: str
    #: Pictures of one group stay on the same side of a validation split.
    group: str
    #: Shared by a generated picture and the photograph that it was made from; empty without a counterpart.
    pair: str = ""
    #: Where the picture comes from: a camera, a site, a gallery; empty where that is the family.
    source: str = ""
    #: What it shows, such as faces; empty where nobody said.
    content: str = ""
    #: What made a generated picture, several joined by "+" where it is one of them; empty if the family says.
    generator: str = ""
    #: How a training makes this generated picture from the photograph in the file; empty for the file itself.
    twin: str = ""

    @property
    def origin(self) -> str:
        """The source, or the family where there is none."""
        return self.source or self.family

    @property
    def generators(self) -> frozenset[str]:
        """What may have made a generated picture; empty for a photograph."""
        return frozenset((self.generator or self.family).split("+") if self.generated else ())


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that cannot be decoded: `reason` is one of `ImageReason` or "unreadable"."""

    sample: Sample
    reason: str
    detail: str


def read_corpus(folder: Path, split: str | None = None, layout: Layout = "auto") -> list[Sample]:
    """Return the pictures of a corpus, or of one `split` of it, sorted by path.

    With `layout` "auto" a manifest.csv is read where there is one; otherwise the layout is recognised from
    the folders. A corpus without splits is read whole, for the splits None and "train" only. Raises
    `CorpusRejectedError` when the layout is unknown or ambiguous, a row of the manifest is invalid, the split
    is missing, or a family has pictures of both classes.
    """
    listed = _read(folder, split, layout)
    samples = sorted(_of_split(listed, split, folder), key=lambda sample: sample.path)
    real_families = {sample.family for sample in samples if not sample.generated}
    both = real_families.intersection(sample.family for sample in samples if sample.generated)
    if both:
        raise CorpusRejectedError(
            f"the family {min(both)} in {folder} has real and generated pictures: a family is one generator "
            "or one source of photographs"
        )
    return samples


def split_names(folder: Path) -> list[str]:
    """Return the names of a corpus's splits, sorted; none where it is undivided.

    Raises `CorpusRejectedError` as `read_corpus` does.
    """
    return sorted({split for _, split in _read(folder, None, "auto") if split})


def readable(samples: Iterable[Sample]) -> tuple[list[Sample], list[SkippedPicture]]:
    """Decode every picture once; return the samples that can be decoded, and the others with reasons.

    Each skipped picture is also logged as the warning event `picture_skipped`. Raises `CorpusRejectedError`
    when no picture can be decoded.
    """
    kept: list[Sample] = []
    skipped: list[SkippedPicture] = []
    listed = list(samples)
    progress = Progress("pictures_decoded", len(listed))
    for sample in listed:
        try:
            decode(sample.path.read_bytes())
        except ImageRejectedError as error:
            skipped.append(SkippedPicture(sample, error.reason, str(error)))
        except OSError as error:
            detail = f"The file cannot be read: {error.strerror}."
            skipped.append(SkippedPicture(sample, "unreadable", detail))
        else:
            kept.append(sample)
        progress.advance()
    for picture in skipped:
        path = str(picture.sample.path)
        log.warning("picture_skipped", path=path, reason=picture.reason, detail=picture.detail)
    if not kept:
        raise CorpusRejectedError(f"none of the {len(skipped)} pictures can be decoded")
    return kept, skipped


def grouped_split(samples: list[Sample], *, every: int = 12) -> tuple[list[Sample], list[Sample]]:
    """Split into training and validation samples: of each family every `every`-th group is held out.

    Both pictures of a pair have the same group, so they stay together.
    """
    held_out: set[str] = set()
    for family in sorted({sample.family for sample in samples}):
        groups = sorted({sample.group for sample in samples if sample.family == family} - held_out)
        shared = {sample.group for sample in samples if sample.family != family}
        held_out.update([group for group in groups if group not in shared][every // 2 :: every])
        held_out.update([group for group in groups if group in shared and _bucket(group, every) == 0])
    return (
        [sample for sample in samples if sample.group not in held_out],
        [sample for sample in samples if sample.group in held_out],
    )


@dataclass(frozen=True)
class TrainingSplit:
    """Samples for training and for validation; no group is on both sides.

    Validation samples choose the checkpoint and calibrate the score. They are held-out groups of the training
    families and all pictures of the held-out families.
    """

    training: list[Sample]
    validation: list[Sample]


def training_split(samples: list[Sample], held_out_families: Collection[str] = ()) -> TrainingSplit:
    """Split as `grouped_split` does, but hold out whole families, and exclude what shares a group with them.

    Raises `CorpusRejectedError` when the corpus has no such family.
    """
    if unknown := set(held_out_families) - {sample.family for sample in samples}:
        raise CorpusRejectedError(f"there is no family {min(unknown)} to hold out")
    held_out = [sample for sample in samples if sample.family in held_out_families]
    groups = {sample.group for sample in held_out}
    training, validation = grouped_split([sample for sample in samples if sample.group not in groups])
    return TrainingSplit(training, validation + held_out)


def _bucket(group: str, buckets: int) -> int:
    return sum(group.encode()) % buckets


def _read(folder: Path, split: str | None, layout: Layout) -> list[tuple[Sample, str | None]]:
    """Return all samples with the names of their splits; only files of the chosen split must exist."""
    if layout not in LAYOUTS:
        raise CorpusRejectedError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    manifest = folder / MANIFEST_FILE
    if layout == "manifest" or (layout == "auto" and manifest.exists()):
        return list(_manifest_rows(manifest, split))
    return [
        (Sample(p.path, p.generated, p.family, p.group or str(p.path)), p.split)
        for p in read_layout(folder, None if layout == "auto" else layout)
    ]


def _of_split(listed: list[tuple[Sample, str | None]], split: str | None, folder: Path) -> list[Sample]:
    splits = sorted({own for _, own in listed if own})
    if not splits and split not in _SPLITS_OF_UNDIVIDED:
        raise CorpusRejectedError(f"{folder} has no splits, so {split!r} cannot be chosen")
    samples = [sample for sample, own in listed if split is None or not splits or own == split]
    if not samples:
        raise CorpusRejectedError(
            f"{folder} has no pictures of split {split!r}; its splits: {', '.join(splits)}"
        )
    return samples


def _manifest_rows(manifest: Path, split: str | None) -> Iterator[tuple[Sample, str | None]]:
    """Yield the rows as samples with the names of their splits; only files of the chosen split must exist."""
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
        raise CorpusRejectedError(f"{manifest} is not a CSV file in UTF-8: {error}") from error
    if not rows:
        raise CorpusRejectedError(f"{manifest} has no rows below its header")
    has_splits = any(row.get("split") for row in rows)
    seen: dict[Path, int] = {}
    samples: list[Sample] = []
    # Rows are numbered as in a spreadsheet: row 1 is the header.
    for number, row in enumerate(rows, start=2):
        sample = _parse_row(row, manifest, number)
        first = seen.setdefault(sample.path, number)
        if first != number:
            raise CorpusRejectedError(
                f"{manifest}, row {number}: {row['path']} is already listed in row {first}"
            )
        chosen = split is None or not has_splits or row.get("split") == split
        if chosen and not sample.path.is_file():
            raise CorpusRejectedError(f"{manifest}, row {number}: there is no file {row['path']}")
        samples.append(sample)
    yield from zip(_with_linked_groups(samples), [row.get("split") for row in rows], strict=True)


def _parse_row(row: dict[str, str | None], manifest: Path, number: int) -> Sample:
    where = f"{manifest}, row {number}"
    path, label = row["path"] or "", row["label"]
    if label not in {"real", "generated"}:
        raise CorpusRejectedError(f"{where}: the label {label!r} is neither real nor generated")
    inside = Path(os.path.normpath(path))
    if not path or inside.is_absolute() or inside.parts[:1] == ("..",):
        raise CorpusRejectedError(f"{where}: the path {path!r} is not inside {manifest.parent}")
    pair = row.get("pair") or ""
    return Sample(
        path=manifest.parent / inside,
        generated=label == "generated",
        family=row["family"] or label,
        group=row.get("group") or pair or path,
        pair=pair,
        source=row.get("source") or "",
        content=row.get("content") or "",
        generator=(row.get("generator") or "") if label == "generated" else "",
    )


def _with_linked_groups(samples: list[Sample]) -> list[Sample]:
    """Give one group to all pictures that a group or a pair links, directly or through others."""
    leaders = linked([[sample.group, *filter(None, [sample.pair])] for sample in samples])
    return [replace(sample, group=leader) for sample, leader in zip(samples, leaders, strict=True)]


def linked(names: Sequence[Sequence[Name]]) -> list[Name]:
    """Return one name for each item, the same for all items that share a name, directly or through others.

    Each item has at least one name.
    """
    leader: dict[Name, Name] = {}

    def find(name: Name) -> Name:
        while (parent := leader.get(name, name)) != name:
            name = parent
        return name

    for first, *others in names:
        for name in others:
            leader[find(name)] = find(first)
    return [find(first) for first, *_ in names]
