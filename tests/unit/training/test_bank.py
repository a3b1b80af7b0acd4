"""The bank of crops and features."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detector.corpus.corpus import Sample, read_corpus
from detector.training.augmentation import CodecChain
from detector.training.bank import FeatureBank
from detector.training.batches import BalancedPictures


def test_a_bank_resumes_and_keeps_pairs(corpus: Path, tmp_path: Path) -> None:
    """Nothing is computed twice, and each batch has as many pictures of each class."""
    pictures = BalancedPictures(read_corpus(corpus), CodecChain(), size=32, batch=4, seed=2)
    computed: list[int] = []

    def halved(crops: torch.Tensor) -> torch.Tensor:
        computed.append(len(crops))
        return crops.permute(0, 3, 1, 2).float() / 2

    def interrupted(crops: torch.Tensor) -> torch.Tensor:
        if len(computed) == 3:
            raise InterruptedError
        return halved(crops)

    with pytest.raises(InterruptedError):
        FeatureBank(tmp_path, 16).fill(pictures, 4, interrupted, "half")
    bank = FeatureBank(tmp_path, 16)
    bank.fill(pictures, 4, halved, "half")
    assert computed == [4] * 4
    stored = next(bank.batches("half", 8, first=0, seed=0))
    assert stored.labels.tolist() == [1, 0] * 4
    assert stored.features is not None
    np.testing.assert_array_equal(stored.features * 2, stored.pictures.transpose(0, 3, 1, 2))


def test_a_bank_of_other_pictures_or_another_recipe_is_rejected(corpus: Path, tmp_path: Path) -> None:
    """After a change of seed, augmentation or corpus its crops are not those of the recipe."""
    samples = read_corpus(corpus)

    def fill(samples: list[Sample], chain: CodecChain, seed: int) -> None:
        pictures = BalancedPictures(samples, chain, size=32, batch=4, seed=seed)
        FeatureBank(tmp_path, 8).fill(pictures, 4, None, "")

    fill(samples, CodecChain(), 2)
    fill(samples, CodecChain(), 2)
    for others in (
        (samples[1:], CodecChain(), 2),
        (samples, CodecChain(blur=0), 2),
        (samples, CodecChain(), 3),
    ):
        with pytest.raises(ValueError, match="another recipe or seed"):
            fill(*others)
