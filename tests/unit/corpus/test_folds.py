"""Folds that leave out whole generators and sources."""

from dataclasses import replace
from pathlib import Path

import pytest

from detector.corpus.corpus import CorpusRejectedError, Sample
from detector.corpus.folds import folds


def generated(name: str, generator: str, source: str, group: str = "") -> Sample:
    """Make a generated picture without a file."""
    family = f"{generator}-{source}"
    return Sample(Path(name), True, family, group or name, source=source, generator=generator)  # noqa: FBT003


def photograph(name: str, source: str, group: str = "") -> Sample:
    """Make a photograph without a file."""
    return Sample(Path(name), False, source, group or name, source=source)  # noqa: FBT003


def several(count: int = 6) -> list[Sample]:
    """Make pictures of six generators from two sites each, and of six cameras."""
    pictures = []
    for number in range(count):
        for index in range(4):
            pictures.append(generated(f"g{number}-{index}", f"gan{number}", f"site{number}-{index % 2}"))
            pictures.append(photograph(f"p{number}-{index}", f"camera{number}"))
    return pictures


def test_every_picture_is_held_out_once_with_all_of_its_generator_and_source() -> None:
    """No generator and no source of a fold's held-out pictures is among its training pictures."""
    pictures = several()
    divided = folds(pictures, 3)
    assert sorted(sample.path for fold in divided for sample in fold.held_out) == sorted(
        sample.path for sample in pictures
    )
    for fold in divided:
        assert len(fold.held_out) == len(pictures) // 3
        assert len(fold.training) == len(pictures) - len(fold.held_out)
        for part in ("generators", "origin"):
            held_out = {getattr(sample, part) for sample in fold.held_out} - {frozenset()}
            assert not held_out & {getattr(sample, part) for sample in fold.training}
    assert divided == folds(pictures, 3)


def test_two_pictures_of_one_group_stay_together() -> None:
    """A prompt that two generators share links them; anything may link a generator with a camera."""
    pictures = [
        *several(),
        generated("a", "gan0", "site0-0", group="prompt"),
        generated("b", "gan1", "site1-0", group="prompt"),
        generated("c", "gan2", "site2-0", group="roll"),
        photograph("d", "camera4", group="roll"),
    ]
    for fold in folds(pictures, 3):
        held_out = {sample.path.name for sample in fold.held_out}
        assert held_out.issuperset({"a", "b"}) or held_out.isdisjoint({"a", "b"})
        assert held_out.issuperset({"c", "d"}) or held_out.isdisjoint({"c", "d"})
        assert not {sample.group for sample in fold.held_out} & {sample.group for sample in fold.training}


def test_a_twin_is_trained_on_with_its_photograph_and_not_held_out() -> None:
    """It is no picture of a generator, and the photograph that it repeats is in the figures already."""
    pictures = several()
    photographs = [replace(p, pair=p.group) for p in pictures if not p.generated]
    made = [
        replace(p, path=p.path.with_suffix(".twin"), generated=True, family="vae", generator="vae")
        for p in photographs
    ]
    corpus = [*(p for p in pictures if p.generated), *photographs, *made]
    for fold in folds(corpus, 3):
        assert not any(sample.family == "vae" for sample in fold.held_out)
        twins = {sample.pair for sample in fold.training if sample.family == "vae"}
        assert twins == {sample.pair for sample in fold.training if not sample.generated}


def test_a_mixed_family_links_every_generator_that_it_may_be_of() -> None:
    """Pictures of gan0 or gan1 are not trained on when either of them is held out."""
    pictures = [*several(), generated("mixed", "gan0+gan1", "gallery")]
    for fold in folds(pictures, 3):
        names = {name for sample in fold.held_out for name in sample.generators}
        assert names.issuperset({"gan0", "gan1"}) or names.isdisjoint({"gan0", "gan1"})


def test_a_source_of_several_generators_is_not_trained_on_when_one_of_them_is_held_out() -> None:
    """A site's pictures share its encoder, whatever generated them."""
    pictures = [*several(), generated("a", "gan0", "blog"), generated("b", "gan5", "blog")]
    for fold in folds(pictures, 3):
        if any(sample.source == "blog" for sample in fold.held_out):
            assert all(sample.source != "blog" for sample in fold.training)


def test_sources_can_be_left_out_with_their_generators_in_training() -> None:
    """Then each generator is trained on through its other site."""
    divided = folds(several(), 4, "sources")
    trained = [{name for sample in fold.training for name in sample.generators} for fold in divided]
    assert all(len(names) == 6 for names in trained)
    for fold in divided:
        assert not {sample.source for sample in fold.held_out} & {sample.source for sample in fold.training}


def test_a_fold_without_both_classes_is_rejected() -> None:
    """Two generators make no three folds."""
    with pytest.raises(CorpusRejectedError, match="fold 3 of 3 lacks a class to score"):
        folds(several(2), 3)
