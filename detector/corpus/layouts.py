"""Folder layouts of labelled corpora: this project's own and three published ones.

Wang et al., "CNN-generated images are surprisingly easy to spot... for now", CVPR 2020 (CNNDetection);
Zhu et al., "GenImage: A Million-Scale Benchmark", NeurIPS 2023; Wang et al., "DIRE for Diffusion-Generated
Image Detection", ICCV 2023 (DiffusionForensics).
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from detector.images.decode import PICTURE_SUFFIXES

FolderLayout = Literal["folders", "cnndetection", "genimage", "diffusionforensics"]

_FOLDER_LAYOUTS: tuple[FolderLayout, ...] = get_args(FolderLayout)
_SPLITS = ("train", "val", "test")
_SHAPES: dict[FolderLayout, str] = {
    "folders": "[SPLIT/]real/[SOURCE/]..., [SPLIT/]generated/[FAMILY/]...",
    "cnndetection": "[SPLIT/][GENERATOR/][CATEGORY/]{0_real,1_fake}/...",
    "genimage": "[GENERATOR/][RELEASE/][SPLIT/]{nature,ai}/...",
    "diffusionforensics": "[images/][SPLIT/]DATASET/{real,GENERATOR}/...",
}
# Names of classes and splits, which are never the name of a generator or a data set.
_RESERVED = frozenset({*_SPLITS, "real", "generated", "fake", "0_real", "1_fake", "nature", "ai"})
# DiffusionForensics has its reconstructions and their errors beside the pictures.
_DERIVED = frozenset({"recons", "dire"})
# CNNDetection sorts its training set (all of it ProGAN) and some test sets by category.
_CATEGORIES = frozenset(
    re.findall(
        r"\w+",
        """airplane apple bedroom bicycle bird boat bottle bus car cat chair church cow diningtable dog horse
        motorbike orange person pottedplant sheep sofa summer train tvmonitor winter zebra""",
    )
)
_GENIMAGE_RELEASE = re.compile(r"imagenet_(ai_\d+_)?")
_GENIMAGE_NAMES = {"sdv4": "stable_diffusion_v_1_4", "sdv5": "stable_diffusion_v_1_5"}
_IMAGENET_FILE = re.compile(r"(n\d{8}_\d+|ILSVRC2012_)")

_Parts = tuple[str, ...]


class CorpusRejectedError(ValueError):
    """The folder holds no corpus in a known layout, or one that is inconsistent."""


@dataclass(frozen=True)
class PlacedPicture:
    """A picture and what its path says about it."""

    path: Path
    generated: bool
    #: The generator, or the source of photographs.
    family: str
    #: train, val or test; None where the corpus has no splits.
    split: str | None
    #: Shared by copies of one photograph; None where the layout has no copies.
    group: str | None = None


class _Place(NamedTuple):
    generated: bool
    family: str
    split: str | None
    group: str | None = None


class _Context(NamedTuple):
    """What a single path does not say: the corpus's name, its top folders, the data sets with photographs."""

    corpus_name: str
    is_split: bool
    top_folders: frozenset[str]
    real_datasets: frozenset[str]


class _LayoutMismatchError(Exception):
    """A picture does not fit the layout."""


def read_layout(folder: Path, layout: FolderLayout | None = None) -> list[PlacedPicture]:
    """Read every picture below `folder` by `layout`, or by the one layout that all of them fit.

    Symbolic links are followed; hidden files are ignored. Raises `CorpusRejectedError` when there are no
    pictures, when no layout or more than one fits all of them, and when only some belong to a split.
    """
    pictures = sorted(_pictures(folder))
    if not pictures:
        raise CorpusRejectedError(
            f"there is no manifest.csv and no picture ({' '.join(sorted(PICTURE_SUFFIXES))}) in {folder}"
        )
    fitting: dict[FolderLayout, list[PlacedPicture]] = {}
    mismatches: dict[FolderLayout, str] = {}
    for name in [layout] if layout else _FOLDER_LAYOUTS:
        try:
            fitting[name] = _apply(name, pictures, folder)
        except _LayoutMismatchError as mismatch:
            mismatches[name] = str(mismatch)
    if not fitting:
        tried = "; ".join(
            f"{name}, {_SHAPES[name]} (no place for {path})" for name, path in mismatches.items()
        )
        also = "" if layout else " There is no manifest.csv either."
        raise CorpusRejectedError(f"the pictures in {folder} are not laid out as {tried}.{also}")
    if len(fitting) > 1:
        raise CorpusRejectedError(f"{folder} is ambiguous: it can be read as {' and as '.join(fitting)}")
    (placed,) = fitting.values()
    _check_splits(folder, placed)
    return placed


def _pictures(folder: Path) -> Iterator[_Parts]:
    """Yield the paths of pictures relative to `folder`; visit each folder once, even if links lead to it."""
    visited: set[tuple[int, int]] = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        status = Path(current).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        parents = Path(current).relative_to(folder).parts
        for name in files:
            if Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith("."):
                yield (*parents, name)


def _apply(layout: FolderLayout, pictures: list[_Parts], folder: Path) -> list[PlacedPicture]:
    if layout == "diffusionforensics":
        pictures = [parts for parts in pictures if parts[0] not in _DERIVED] or pictures
    names = folder.resolve().parts
    context = _Context(
        corpus_name=next((name for name in reversed(names) if name not in _SPLITS), "corpus"),
        is_split=names[-1] in _SPLITS,
        top_folders=frozenset(parts[0] for parts in pictures),
        real_datasets=frozenset(
            parent for parts in pictures for parent, name in pairwise(parts[:-1]) if name == "real"
        ),
    )
    placed: list[PlacedPicture] = []
    for parts in pictures:
        place = _PLACES[layout](parts, context)
        if place is None:
            raise _LayoutMismatchError("/".join(parts))
        placed.append(PlacedPicture(folder.joinpath(*parts), *place))
    return placed


def _check_splits(folder: Path, placed: list[PlacedPicture]) -> None:
    inside = [picture for picture in placed if picture.split]
    outside = [picture for picture in placed if not picture.split]
    if inside and outside:
        raise CorpusRejectedError(
            f"some pictures in {folder} belong to a split ({inside[0].path}), others to none "
            f"({outside[0].path}): move them apart"
        )


def _split_off(parts: _Parts) -> tuple[str | None, _Parts]:
    return (parts[0], parts[1:]) if parts[0] in _SPLITS else (None, parts)


def _folders(parts: _Parts, _: _Context) -> _Place | None:
    split, (label, *below) = _split_off(parts)
    if label not in {"real", "generated"} or not below:
        return None
    return _Place(label == "generated", below[0] if len(below) > 1 else label, split)


def _cnndetection(parts: _Parts, context: _Context) -> _Place | None:
    # "train" is also a category.
    only_categories = len(context.top_folders) > 1 and context.top_folders <= _CATEGORIES
    split, rest = (None, parts) if only_categories else _split_off(parts)
    parents, label = _parents_of_label(rest, "0_real", "1_fake")
    category = parents[-1:] if parents and parents[-1] in _CATEGORIES else ()
    names = parents[: len(parents) - len(category)]
    if label is None or len(names) > 1 or _RESERVED.intersection(names):
        return None
    unnamed = "progan" if category and (split or context.is_split) else context.corpus_name
    generator = names[0] if names else unnamed
    # Each generator comes with its own photographs: faces, bedrooms and so on.
    return _Place(label == "1_fake", generator if label == "1_fake" else f"{generator}-real", split)


def _genimage(parts: _Parts, context: _Context) -> _Place | None:
    parents, label = _parents_of_label(parts, "nature", "ai")
    split = parents[-1] if parents and parents[-1] in _SPLITS else None
    names = parents[:-1] if split else parents
    if label is None or _RESERVED.intersection(names) or not all(map(_GENIMAGE_RELEASE.match, names[1:])):
        return None
    if label == "nature":
        # Several generators may come with copies of one ImageNet photograph.
        group = parts[-1] if _IMAGENET_FILE.match(parts[-1]) else None
        return _Place(generated=False, family="nature", split=split, group=group)
    name = _GENIMAGE_RELEASE.sub("", (names[0] if names else context.corpus_name).lower(), count=1)
    return _Place(generated=True, family=_GENIMAGE_NAMES.get(name, name), split=split)


def _diffusionforensics(parts: _Parts, context: _Context) -> _Place | None:
    split, (dataset, *below) = _split_off(parts[1:] if parts[0] == "images" else parts)
    if dataset in _RESERVED or dataset not in context.real_datasets or len(below) < 2:  # noqa: PLR2004
        return None
    if below[0] == "real":
        return _Place(generated=False, family=dataset, split=split)
    return None if below[0] in _RESERVED else _Place(generated=True, family=below[0], split=split)


def _parents_of_label(parts: _Parts, *labels: str) -> tuple[_Parts, str | None]:
    """Return the folders above the first one that is named like a label, and that label."""
    for index, name in enumerate(parts[:-1]):
        if name in labels:
            return parts[:index], name
    return (), None


_PLACES: dict[FolderLayout, Callable[[_Parts, _Context], _Place | None]] = {
    "folders": _folders,
    "cnndetection": _cnndetection,
    "genimage": _genimage,
    "diffusionforensics": _diffusionforensics,
}
