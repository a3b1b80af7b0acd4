"""A labelled corpus on disk: manifest.csv, or folders `real/...` and `generated/<family>/...`."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from detector.images import PICTURE_SUFFIXES


class CorpusRejected(ValueError):  # noqa: N818 - a finding on the user's folder
    """The folder holds no corpus in a layout that this product reads."""


@dataclass(frozen=True)
class Sample:
    """One picture: `group` is shared by pictures that must fall on the same side of a validation split."""

    path: Path
    generated: bool
    family: str
    group: str


def read_corpus(folder: Path, split: str | None = None) -> list[Sample]:
    """List a corpus's pictures, sorted by path; `split` chooses rows of a manifest that has that column.

    Raises `CorpusRejected` when nothing is found.
    """
    manifest = folder / "manifest.csv"
    samples = sorted(
        _from_manifest(manifest, split) if manifest.exists() else _from_folders(folder),
        key=lambda sample: sample.path,
    )
    if not samples:
        raise CorpusRejected(f"no pictures of split {split!r} in {folder}: manifest.csv or real/, generated/")
    return samples


def _from_manifest(manifest: Path, split: str | None) -> Iterable[Sample]:
    with manifest.open(newline="") as file:
        for row in csv.DictReader(file):
            if split is None or row.get("split") == split:
                yield Sample(
                    path=manifest.parent / row["path"],
                    generated=row["label"] == "generated",
                    family=row["family"],
                    group=row.get("pair") or row["path"],
                )


def _from_folders(folder: Path) -> Iterable[Sample]:
    for label in ("real", "generated"):
        for path in (folder / label).rglob("*"):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                family = path.relative_to(folder / label).parts[0] if path.parent != folder / label else label
                yield Sample(path, label == "generated", family, str(path))


def grouped_split(samples: list[Sample], *, every: int = 8) -> tuple[list[Sample], list[Sample]]:
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


def _bucket(group: str, buckets: int) -> int:
    return sum(group.encode()) % buckets
