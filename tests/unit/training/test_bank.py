"""The bank of crops and features."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detector.corpus.corpus import Sample, read_corpus
from detector.training.augmentation import CodecChain
from detector.training.bank import CropBank
from detector.training.batches import BalancedPictures, CropMaker
from detector.training.twins import with_twins


def _bank(folder: Path, samples: list[Sample], chain: CodecChain | None = None, seed: int = 2) -> CropBank:
    return CropBank(folder, samples, CropMaker(chain or CodecChain(), 32), each=3, seed=seed)


def test_a_bank_resumes(corpus: Path, tmp_path: Path) -> None:
    """No feature that was noted is computed twice, and each belongs to its crop."""
    samples = read_corpus(corpus)
    computed: list[int] = []

    def halved(crops: torch.Tensor) -> torch.Tensor:
        computed.append(len(crops))
        return crops.permute(0, 3, 1, 2).float() / 2

    bank = _bank(tmp_path, samples)
    bank.fill()
    bank.fill_features("half", halved)
    assert sum(computed) == len(samples) * 3
    again = _bank(tmp_path, samples)
    again.fill()
    again.fill_features("half", halved)
    assert sum(computed) == len(samples) * 3
    np.testing.assert_array_equal(again.features("half") * 2, bank.crops.transpose(0, 3, 1, 2))


def test_two_trainings_find_the_same_crops_of_a_picture(corpus: Path, tmp_path: Path) -> None:
    """A training on a part of the pictures, as in one fold, reads from the bank of all."""
    samples = read_corpus(corpus)
    bank = _bank(tmp_path, samples)
    bank.fill()
    one, two = samples[3], samples[4]
    assert {bank.row(one, seed) for seed in range(9)} == {9, 10, 11}
    assert bank.row(two, 1) - bank.row(one, 1) == 3
    alone = _bank(tmp_path / "alone", samples[3:4])
    alone.fill()
    np.testing.assert_array_equal(bank.crops[9:12], alone.crops)


def test_a_photograph_and_its_twin_are_cropped_alike(corpus: Path, tmp_path: Path) -> None:
    """Crop by crop the two differ by the twin's trace alone, which is weaker than the picture."""
    photographs = [sample for sample in read_corpus(corpus) if not sample.generated][:4]
    samples = with_twins(photographs, ["noisy"])
    assert [sample.generated for sample in samples] == [False] * 4 + [True] * 4
    bank = _bank(tmp_path, samples, CodecChain(encode=0))
    bank.fill()
    for photograph, made in zip(samples[:4], samples[4:], strict=True):
        for seed in range(3):
            real, twin = (bank.crops[bank.row(s, seed)].astype(float) for s in (photograph, made))
            assert 0 < np.abs(real - twin).mean() < 5
            assert np.abs(real - np.roll(real, 5, 0)).mean() > 10
    draws = BalancedPictures(samples, CodecChain(), size=32, batch=8, seed=1).draws(0)
    for (generated, its_seed), (real, seed) in zip(draws[::2], draws[1::2], strict=True):
        assert (generated.path, its_seed) == (real.path, seed)


def test_a_bank_of_other_pictures_or_another_recipe_is_rejected(corpus: Path, tmp_path: Path) -> None:
    """After a change of seed, augmentation or corpus its crops are not those of the recipe."""
    samples = read_corpus(corpus)
    _bank(tmp_path, samples).fill()
    _bank(tmp_path, samples)
    for others, chain, seed in (
        (samples[1:], CodecChain(), 2),
        (samples, CodecChain(blur=0), 2),
        (samples, CodecChain(), 3),
    ):
        with pytest.raises(ValueError, match="another recipe or seed"):
            _bank(tmp_path, others, chain, seed)
