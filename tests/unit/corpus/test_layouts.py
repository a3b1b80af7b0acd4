"""Folder layouts: this project's own, CNNDetection, GenImage, DiffusionForensics, and none of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detector.corpus.corpus import CorpusRejectedError, Layout, read_corpus

Touch = Callable[..., Path]


@pytest.fixture
def touch(tmp_path: Path) -> Touch:
    """Return a function that creates empty files below a folder `collection` and returns that folder."""

    def make(*paths: str) -> Path:
        for path in paths:
            (tmp_path / "collection" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "collection" / path).touch()
        return tmp_path / "collection"

    return make


def _read(folder: Path, split: str | None = None, layout: Layout = "auto") -> dict[str, str]:
    """Return each picture's label and family by its path."""
    return {
        sample.path.relative_to(
            folder
        ).as_posix(): f"{'generated' if sample.generated else 'real'} {sample.family}"
        for sample in read_corpus(folder, split, layout)
    }


def test_our_layout_may_have_splits(touch: Touch) -> None:
    """A split's folder holds both classes; all splits are read when none is named."""
    folder = touch("train/real/a.jpg", "train/generated/sd/x/b.webp", "val/real/lake/c.PNG", "val/notes.txt")
    assert _read(folder, "train") == {
        "train/generated/sd/x/b.webp": "generated sd",
        "train/real/a.jpg": "real real",
    }
    assert _read(folder, "val") == {"val/real/lake/c.PNG": "real lake"}
    assert len(_read(folder)) == 3


def test_cnndetection_is_read_as_published(touch: Touch) -> None:
    """Its training set is ProGAN sorted by category; so are some of its test sets."""
    folder = touch(
        "train/airplane/0_real/1.png",
        "train/train/1_fake/2.png",
        "val/cat/1_fake/3.png",
        "test/progan/train/0_real/4.png",
        "test/stylegan2/horse/1_fake/5.png",
        "test/deepfake/0_real/6.png",
        "test/deepfake/1_fake/7.png",
    )
    assert _read(folder, "train") == {
        "train/airplane/0_real/1.png": "real progan-real",
        "train/train/1_fake/2.png": "generated progan",
    }
    assert _read(folder, "val") == {"val/cat/1_fake/3.png": "generated progan"}
    assert _read(folder, "test") == {
        "test/deepfake/0_real/6.png": "real deepfake-real",
        "test/deepfake/1_fake/7.png": "generated deepfake",
        "test/progan/train/0_real/4.png": "real progan-real",
        "test/stylegan2/horse/1_fake/5.png": "generated stylegan2",
    }


def test_one_test_set_or_training_set_of_cnndetection_is_read(touch: Touch) -> None:
    """Without a generator in the path the family is the folder's own name, or ProGAN in a split's folder."""
    folder = touch("cyclegan/train/0_real/1.png", "cyclegan/horse/1_fake/2.png", "train/cat/1_fake/3.png")
    assert set(_read(folder / "cyclegan").values()) == {"real cyclegan-real", "generated cyclegan"}
    assert _read(folder / "cyclegan" / "horse") == {"1_fake/2.png": "generated horse"}
    assert set(_read(folder / "train").values()) == {"generated progan"}


def test_genimage_is_read_as_released(touch: Touch) -> None:
    """The family comes from the generator's folder, the release's, or both; its splits are train and val."""
    folder = touch(
        "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/train/ai/1.png",
        "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/train/nature/n01440764_36.JPEG",
        "imagenet_ai_0508_adm/train/ai/2.PNG",
        "imagenet_ai_0508_adm/train/nature/n01440764_36.JPEG",
        "imagenet_ai_0424_sdv5/val/ai/3.png",
        "Midjourney/val/ai/4.png",
        "imagenet_glide/val/nature/ILSVRC2012_val_1.JPEG",
    )
    assert sorted(_read(folder, "train").values()) == [
        "generated adm",
        "generated stable_diffusion_v_1_4",
        "real nature",
        "real nature",
    ]
    assert sorted(_read(folder, "val").values()) == [
        "generated midjourney",
        "generated stable_diffusion_v_1_5",
        "real nature",
    ]
    photographs = [sample for sample in read_corpus(folder, "train") if not sample.generated]
    assert photographs[0].group == photographs[1].group, "copies of one photograph form one group"
    with pytest.raises(CorpusRejectedError, match="no pictures of split 'test'; its splits: train, val"):
        read_corpus(folder, "test")


def test_one_release_of_genimage_is_read(touch: Touch) -> None:
    """The release's own folder is enough."""
    folder = touch("imagenet_ai_0419_vqdm/train/ai/1.png", "imagenet_ai_0419_vqdm/train/nature/2.JPEG")
    assert set(_read(folder / "imagenet_ai_0419_vqdm").values()) == {"generated vqdm", "real nature"}


def test_diffusionforensics_is_read_as_published(touch: Touch) -> None:
    """Photographs are named by data set, generated pictures by generator; reconstructions are ignored."""
    folder = touch(
        "images/train/lsun_bedroom/real/1.jpg",
        "images/train/lsun_bedroom/adm/2.png",
        "images/test/imagenet/real/n03982430/3.JPEG",
        "images/test/imagenet/sdv1/12/4.png",
        "dire/train/lsun_bedroom/adm/2.png",
        "recons/train/lsun_bedroom/real/1.jpg",
    )
    assert _read(folder, "train") == {
        "images/train/lsun_bedroom/adm/2.png": "generated adm",
        "images/train/lsun_bedroom/real/1.jpg": "real lsun_bedroom",
    }
    assert sorted(_read(folder / "images", "test").values()) == ["generated sdv1", "real imagenet"]
    assert len(_read(folder)) == 4


def test_a_folder_of_no_layout_is_rejected_with_the_layouts_that_were_tried(touch: Touch) -> None:
    """The message names each layout and a picture that does not fit it."""
    with pytest.raises(CorpusRejectedError) as caught:
        read_corpus(touch("cats/real/1.jpg", "cats/fake/2.jpg"))
    for part in ("manifest.csv", "generated/[FAMILY/]", "{0_real,1_fake}", "{nature,ai}", "cats/fake/2.jpg"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "paths",
    [
        ["real/1.jpg", "generated/sd/2.jpg", "leftover/3.jpg"],
        ["real/1.jpg", "generated/sd/2.jpg", "3.jpg"],
        ["train/lsun/real/1.jpg", "train/celeba/adm/2.png"],
        ["GenImage/BigGAN/val/ai/1.png", "GenImage/BigGAN/val/nature/2.JPEG"],
        ["progan/0_real/1.png", "progan/own/1_fake/2.png"],
        ["lsun/real/1.png", "lsun/generated/2.png"],
    ],
)
def test_one_picture_that_fits_no_layout_rejects_the_corpus(touch: Touch, paths: list[str]) -> None:
    """Its label is not guessed."""
    with pytest.raises(CorpusRejectedError, match="no place for"):
        read_corpus(touch(*paths))


def test_an_ambiguous_folder_is_rejected_unless_its_layout_is_named(touch: Touch) -> None:
    """A folder copied into itself fits two layouts, which label the picture differently."""
    folder = touch("stylegan/cat/1_fake/stylegan/real/1.png")
    with pytest.raises(CorpusRejectedError, match="read as cnndetection and as diffusionforensics"):
        read_corpus(folder)
    assert set(_read(folder, layout="cnndetection").values()) == {"generated stylegan"}
    assert set(_read(folder, layout="diffusionforensics").values()) == {"generated cat"}


def test_pictures_in_a_split_are_not_mixed_with_others(touch: Touch) -> None:
    """A corpus that is half in train/ and half beside it is rejected as a mistake."""
    with pytest.raises(CorpusRejectedError, match="belong to a split"):
        read_corpus(touch("train/real/1.jpg", "generated/sd/2.jpg"))


def test_a_named_layout_is_not_replaced_by_another(touch: Touch) -> None:
    """A manifest is ignored when folders are asked for, and a layout that does not fit is rejected."""
    folder = touch("real/1.jpg", "generated/sd/2.jpg")
    (folder / "manifest.csv").write_text("path,label,family\nreal/1.jpg,real,camera\n")
    assert len(read_corpus(folder)) == 1
    assert len(read_corpus(folder, layout="folders")) == 2
    with pytest.raises(CorpusRejectedError, match="not laid out as genimage"):
        read_corpus(folder, layout="genimage")
    with pytest.raises(
        CorpusRejectedError, match="no layout 'imagenet'; choose one of auto, manifest, folders"
    ):
        read_corpus(folder, layout="imagenet")  # type: ignore[arg-type]


def test_links_are_followed_once_and_hidden_files_are_ignored(touch: Touch) -> None:
    """A linked folder is read, a loop of links ends, and an archiver's leftovers are ignored."""
    folder = touch("real/1.jpg", "generated/sd/2.jpg", "real/._1.jpg", "__MACOSX/real/1.jpg", ".cache/3.jpg")
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "4.jpg").touch()
    (folder / "generated" / "ldm").symlink_to(folder.parent / "elsewhere")
    (folder / "real" / "loop").symlink_to(folder / "real")
    assert sorted(_read(folder).values()) == ["generated ldm", "generated sd", "real real"]
