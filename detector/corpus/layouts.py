"""Folder layouts of labelled corpora: this project's own and three published ones, read as they are.

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
# Names that mean a class or a split somewhere: never a generator, never a data set.
_RESERVED = frozenset({*_SPLITS, "real", "generated", "fake", "0_real", "1_fake", "nature", "ai"})
# Reconstructions and their errors stand beside DiffusionForensics' own pictures.
_DERIVED = frozenset({"recons", "dire"})
# CNNDetection's training set has ProGAN's pictures by category alone; some test sets have categories too.
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
    """The folder holds no corpus in a layout that this product reads, or one that contradicts itself."""


@dataclass(frozen=True)
class PlacedPicture:
    """A picture and what its place in the folders says of it.

    `family` is the generator, or the source of photographs; `split` is train, val, test or None; `group` is
    shared by copies of one photograph, None where the layout knows of none.
    """

    path: Path
    generated: bool
    family: str
    split: str | None
    group: str | None = None


class _Place(NamedTuple):
    generated: bool
    family: str
    split: str | None
    group: str | None = None


class _Surroundings(NamedTuple):
    """What one path does not tell: the corpus's own name, its first folders, the data sets with reals."""

    own_name: str
    is_split: bool
    tops: frozenset[str]
    with_reals: frozenset[str]


class _LayoutMismatchError(Exception):
    """A picture that has no place in a layout."""


def read_layout(folder: Path, layout: FolderLayout | None = None) -> list[PlacedPicture]:
    """Place every picture below `folder` by `layout`, or by the one layout that all of them fit.

    Links are followed; hidden files are left out. Raises `CorpusRejectedError` when there are no pictures,
    when no layout has a place for each of them, when several have, and when only some belong to a split.
    """
    pictures = sorted(_pictures(folder))
    if not pictures:
        raise CorpusRejectedError(
            f"there is no manifest.csv and no picture ({' '.join(sorted(PICTURE_SUFFIXES))}) in {folder}"
        )
    fitting: dict[FolderLayout, list[PlacedPicture]] = {}
    misfits: dict[FolderLayout, str] = {}
    for name in [layout] if layout else _FOLDER_LAYOUTS:
        try:
            fitting[name] = _placed(name, pictures, folder)
        except _LayoutMismatchError as misfit:
            misfits[name] = str(misfit)
    if not fitting:
        looked_for = "; ".join(f"{name}, {_SHAPES[name]} (no place for {misfits[name]})" for name in misfits)
        also = "" if layout else " Nor is there a manifest.csv."
        raise CorpusRejectedError(f"the pictures in {folder} are not laid out as {looked_for}.{also}")
    if len(fitting) > 1:
        raise CorpusRejectedError(f"{folder} is ambiguous: it can be read as {' and as '.join(fitting)}")
    (placed,) = fitting.values()
    _check_splits(folder, placed)
    return placed


def _pictures(folder: Path) -> Iterator[_Parts]:
    """Yield the paths of pictures relative to `folder`; each folder is entered once, whatever links to it."""
    entered: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        above = Path(place).relative_to(folder).parts
        for name in files:
            if Path(name).suffix.lower() in PICTURE_SUFFIXES and not name.startswith("."):
                yield (*above, name)


def _placed(layout: FolderLayout, pictures: list[_Parts], folder: Path) -> list[PlacedPicture]:
    if layout == "diffusionforensics":
        pictures = [parts for parts in pictures if parts[0] not in _DERIVED] or pictures
    names = folder.resolve().parts
    surroundings = _Surroundings(
        own_name=next((name for name in reversed(names) if name not in _SPLITS), "corpus"),
        is_split=names[-1] in _SPLITS,
        tops=frozenset(parts[0] for parts in pictures),
        with_reals=frozenset(
            above for parts in pictures for above, name in pairwise(parts[:-1]) if name == "real"
        ),
    )
    placed: list[PlacedPicture] = []
    for parts in pictures:
        place = _PLACES[layout](parts, surroundings)
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


def _own(parts: _Parts, _: _Surroundings) -> _Place | None:
    split, (label, *below) = _split_off(parts)
    if label not in {"real", "generated"} or not below:
        return None
    return _Place(label == "generated", below[0] if len(below) > 1 else label, split)


def _cnndetection(parts: _Parts, around: _Surroundings) -> _Place | None:
    # One of the categories is called train.
    categories_alone = len(around.tops) > 1 and around.tops <= _CATEGORIES
    split, rest = (None, parts) if categories_alone else _split_off(parts)
    above, label = _above(rest, "0_real", "1_fake")
    category = above[-1:] if above and above[-1] in _CATEGORIES else ()
    names = above[: len(above) - len(category)]
    if label is None or len(names) > 1 or _RESERVED.intersection(names):
        return None
    unnamed = "progan" if category and (split or around.is_split) else around.own_name
    generator = names[0] if names else unnamed
    # The photographs beside each generator are others: faces here, bedrooms there.
    return _Place(label == "1_fake", generator if label == "1_fake" else f"{generator}-real", split)


def _genimage(parts: _Parts, around: _Surroundings) -> _Place | None:
    above, label = _above(parts, "nature", "ai")
    split = above[-1] if above and above[-1] in _SPLITS else None
    names = above[:-1] if split else above
    if label is None or _RESERVED.intersection(names) or not all(map(_GENIMAGE_RELEASE.match, names[1:])):
        return None
    if label == "nature":
        # One photograph of ImageNet may stand beside several generators.
        group = parts[-1] if _IMAGENET_FILE.match(parts[-1]) else None
        return _Place(generated=False, family="nature", split=split, group=group)
    name = _GENIMAGE_RELEASE.sub("", (names[0] if names else around.own_name).lower(), count=1)
    return _Place(generated=True, family=_GENIMAGE_NAMES.get(name, name), split=split)


def _diffusionforensics(parts: _Parts, around: _Surroundings) -> _Place | None:
    split, (dataset, *below) = _split_off(parts[1:] if parts[0] == "images" else parts)
    if dataset in _RESERVED or dataset not in around.with_reals or len(below) < 2:  # noqa: PLR2004
        return None
    if below[0] == "real":
        return _Place(generated=False, family=dataset, split=split)
    return None if below[0] in _RESERVED else _Place(generated=True, family=below[0], split=split)


def _above(parts: _Parts, *labels: str) -> tuple[_Parts, str | None]:
    """Return the folders above the first that is one of `labels`, and that label."""
    for index, name in enumerate(parts[:-1]):
        if name in labels:
            return parts[:index], name
    return (), None


_PLACES: dict[FolderLayout, Callable[[_Parts, _Surroundings], _Place | None]] = {
    "folders": _own,
    "cnndetection": _cnndetection,
    "genimage": _genimage,
    "diffusionforensics": _diffusionforensics,
}
