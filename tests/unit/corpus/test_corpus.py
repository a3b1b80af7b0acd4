"""Corpora: the manifest and its errors, splits, groups, and pictures that cannot be decoded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from detector.corpus.corpus import (
    CorpusRejectedError,
    Sample,
    grouped_split,
    read_corpus,
    readable,
    split_names,
)

Touch = Callable[..., Path]


@pytest.fixture
def touch(tmp_path: Path) -> Touch:
    """Return a function that creates empty files below the test's folder and returns the folder."""

    def make(*paths: str) -> Path:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return tmp_path

    return make


def _manifest(folder: Path, *rows: str) -> Path:
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_only_the_chosen_split_must_be_on_disk(touch: Touch) -> None:
    """The files of other splits may be missing."""
    folder = _manifest(
        touch("a.jpg"), "path,split,label,family", "a.jpg,train,real,camera", "b.jpg,test,real,camera"
    )
    assert [sample.path.name for sample in read_corpus(folder, "train")] == ["a.jpg"]
    with pytest.raises(CorpusRejectedError, match=r"row 3: there is no file b\.jpg"):
        read_corpus(folder)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["path,label", "a.jpg,real"], "row 1: missing columns: family"),
        (["path,label,family", "a.jpg,real,camera", "b.jpg,fake,sd"], "row 3: the label 'fake'"),
        (["path,label,family", "../a.jpg,real,camera"], r"row 2: the path '\.\./a\.jpg' is not inside"),
        (["path,label,family", "/etc/a.jpg,real,camera"], "row 2: the path '/etc/a.jpg' is not inside"),
        (["path,label,family", ",real,camera"], "row 2: the path '' is not inside"),
        (["path,label,family", "no.jpg,real,camera"], r"row 2: there is no file no\.jpg"),
        (["path,label,family", "a.jpg,real,x", "./a.jpg,generated,y"], "row 3: .* already listed in row 2"),
        (["path,label,family", "a.jpg"], "row 2: the label None"),
        (["path,label,family"], "no rows"),
        (["path,label,family", "a.jpg,real,sd", "b.jpg,generated,sd"], "the family sd .* real and generated"),
    ],
)
def test_an_invalid_row_is_named(touch: Touch, rows: list[str], complaint: str) -> None:
    """The message gives the row's number, counted as in a spreadsheet, and what is wrong with it."""
    folder = _manifest(touch("a.jpg", "b.jpg"), *rows)
    with pytest.raises(CorpusRejectedError, match=complaint):
        read_corpus(folder)


def test_a_manifest_that_is_not_text_is_rejected(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 raise an error with a detail."""
    (tmp_path / "manifest.csv").write_bytes(b"path,label,family\n\xff\xfe\x00")
    with pytest.raises(CorpusRejectedError, match="not a CSV file in UTF-8"):
        read_corpus(tmp_path)


def test_the_layout_manifest_needs_a_manifest(touch: Touch) -> None:
    """The folders are not read instead."""
    with pytest.raises(CorpusRejectedError, match="cannot be read: No such file"):
        read_corpus(touch("real/a.jpg"), layout="manifest")


def test_a_missing_split_is_rejected(touch: Touch) -> None:
    """A corpus without splits counts as training data, never as a test set."""
    folder = touch("real/a.jpg", "generated/sd/b.jpg")
    assert len(read_corpus(folder, "train")) == 2
    with pytest.raises(CorpusRejectedError, match="no splits, so 'test-unseen' cannot be chosen"):
        read_corpus(folder, "test-unseen")
    _manifest(folder, "path,split,label,family", "real/a.jpg,val,real,camera")
    with pytest.raises(CorpusRejectedError, match="no pictures of split 'train'; its splits: val"):
        read_corpus(folder, "train")


def test_split_names_are_listed_for_manifests_and_folders(touch: Touch) -> None:
    """An undivided corpus has none."""
    folder = touch("val/real/a.jpg", "train/generated/sd/b.jpg", "train/real/c.jpg")
    assert split_names(folder) == ["train", "val"]
    _manifest(folder, "path,split,label,family", "val/real/a.jpg,test-seen,real,camera")
    assert split_names(folder) == ["test-seen"]
    _manifest(folder, "path,label,family", "val/real/a.jpg,real,camera")
    assert split_names(folder) == []


def test_groups_and_pairs_stay_together(touch: Touch) -> None:
    """A pair links the groups of both of its pictures; a picture without either is its own group."""
    folder = _manifest(
        touch("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"),
        "path,label,family,pair,group",
        "a.jpg,real,camera,p1,roll 7",
        "b.jpg,generated,autoencoder,p1,prompt 1",
        "c.jpg,generated,sd,,prompt 1",
        "d.jpg,real,camera,,roll 7",
        "e.jpg,real,camera,,",
    )
    a, b, c, d, e = read_corpus(folder)
    assert a.group == b.group == c.group == d.group != e.group
    assert [sample.pair for sample in (a, b, c, d, e)] == ["p1", "p1", "", "", ""]


def test_pictures_of_one_prompt_are_held_out_together(touch: Touch) -> None:
    """No prompt is on both sides of the split, even if several generators share it."""
    rows = [f"{family}-{index}.jpg" for family in ("sd", "ldm") for index in range(48)]
    listed = [f"{name},generated,{name.split('-')[0]},prompt {n % 24}" for n, name in enumerate(rows)]
    folder = _manifest(touch(*rows), "path,label,family,group", *listed)
    training, validation = grouped_split(read_corpus(folder), every=4)
    assert {sample.family for sample in validation} == {"sd", "ldm"}
    assert not {sample.group for sample in training} & {sample.group for sample in validation}


def test_one_broken_picture_is_skipped_and_named(tmp_path: Path, make_picture: Callable[..., bytes]) -> None:
    """The good ones remain; each bad one is logged as a warning event with a reason from the closed list."""
    files = {"a.jpg": make_picture(), "b.jpg": make_picture()[:600], "c.jpg": b"no picture"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    samples = [Sample(tmp_path / name, False, "camera", name) for name in (*files, "gone.jpg")]  # noqa: FBT003
    with structlog.testing.capture_logs() as events:
        kept, skipped = readable(samples)
    assert [sample.path.name for sample in kept] == ["a.jpg"]
    assert [picture.reason for picture in skipped] == ["truncated", "not_an_image", "unreadable"]
    assert [(event["event"], event["log_level"]) for event in events] == [("picture_skipped", "warning")] * 3
    assert [Path(event["path"]).name for event in events] == ["b.jpg", "c.jpg", "gone.jpg"]


def test_a_corpus_of_broken_pictures_is_rejected(touch: Touch) -> None:
    """There is nothing to train on."""
    with pytest.raises(CorpusRejectedError, match="none of the 1 pictures"):
        readable(read_corpus(touch("real/a.jpg")))
