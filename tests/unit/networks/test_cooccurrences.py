"""Co-occurrences of residuals, and the linear classifier on them."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from detector.bundle.manifest import CooccurrenceConfig, DnfConfig, Manifest, Preprocessing
from detector.networks.cooccurrences import (
    CooccurrenceClassifier,
    code_grid,
    cooccurrence_features,
    cooccurrences,
)

# Classes of codes in space and over channels, and how many of each describe a picture or an estimate.
IN_SPACE, OVER_CHANNELS = 39, 63
OF_DIFFERENCE = 4 * IN_SPACE + OVER_CHANNELS


def views(seed: int, channels: int = 3, side: int = 24) -> Tensor:
    """Return two views of smooth noise in whole grey levels, as -1..1."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(128, 8, (2, channels, side, side + 8))
    levels = np.rint((noise[..., :-1] + noise[..., 1:]) / 2)[..., :side]
    return torch.from_numpy(levels / 127.5 - 1).float()


def counted(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count pixel by pixel, as the definition says, the rows of three horizontal differences of green."""
    difference = levels[1, :, 1:] - levels[1, :, :-1]
    values = np.clip(np.rint(difference), -2, 2).astype(int)
    shares: dict[tuple[int, ...], float] = {}
    rows, columns = values.shape[0], values.shape[1] - 2
    for row, column in product(range(rows), range(columns)):
        code = tuple(int(value) for value in values[row, column : column + 3])
        alike = [code, code[::-1], tuple(-v for v in code), tuple(-v for v in code[::-1])]
        least = min(alike)
        shares[least] = shares.get(least, 0) + 1 / (rows * columns)
    classes = sorted({min(c, c[::-1], n, n[::-1]) for c, n in _codes_and_negatives()})
    return np.array([shares.get(each, 0.0) for each in classes])


def _codes_and_negatives() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    codes = product(range(-2, 3), repeat=3)
    return [(code, tuple(-value for value in code)) for code in codes]


def test_a_share_is_that_of_the_neighbours_with_a_code_or_one_like_it() -> None:
    """A code, its negative and both read backwards are one class; codes are counted in whole grey levels."""
    x = views(1)
    described = cooccurrences(x).double().numpy() ** 2
    levels = np.rint((x[0].double().numpy() + 1) * 127.5)
    assert described[0, :IN_SPACE] == pytest.approx(counted(levels), abs=1e-6)


def test_each_group_of_shares_sums_to_one() -> None:
    """Whatever the picture, so that flat and busy ones are described alike."""
    described = cooccurrences(views(2, channels=6)) ** 2
    assert described.shape[1] == cooccurrence_features(6) == 5 * OF_DIFFERENCE
    for difference in described.split(OF_DIFFERENCE, dim=1):
        *space, channels = difference.split([IN_SPACE] * 4 + [OVER_CHANNELS], dim=1)
        for shares in (*space, channels):
            assert shares.sum(dim=1).numpy() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-1, -2)])
def test_a_mirrored_picture_has_the_same_description(axes: tuple[int, ...]) -> None:
    """Uploads are mirrored, and training need not learn that."""
    x = views(3)
    assert cooccurrences(x.flip(axes)).numpy() == pytest.approx(cooccurrences(x).numpy(), abs=1e-5)


def test_a_picture_does_not_depend_on_its_neighbours_in_a_batch() -> None:
    """Views are described one by one."""
    x = views(4, channels=6)
    alone = torch.cat([cooccurrences(x[:1]), cooccurrences(x[1:])])
    assert torch.equal(cooccurrences(x), alone)


def test_the_classifier_is_a_linear_function_of_the_description() -> None:
    """So a picture's logit, the mean of its views', is that of the mean description."""
    network = CooccurrenceClassifier(3)
    x = views(5)
    expected = network.linear(cooccurrences(x).mean(dim=0))
    assert network(x).mean().item() == pytest.approx(expected.item(), abs=1e-5)


def test_codes_are_numbered_by_their_values() -> None:
    """The first value counts most."""
    assert code_grid()[4, 0, 2] == 4 * 25 + 2


def test_a_manifest_whose_feature_lacks_the_picture_is_refused() -> None:
    """Co-occurrences are counted in the picture, beside the noise feature."""
    fields = {
        "name": "x",
        "version": "1",
        "created": "2026-01-01T00:00:00+00:00",
        "preprocessing": Preprocessing(mode="crop", size=128, views=9),
        "dnf": DnfConfig(),
        "unet": None,
        "calibration": {},
        "thresholds": {"review_from": 0.5, "generated_from": 0.9},
        "classifier": CooccurrenceConfig(in_channels=3),
    }
    assert Manifest.model_validate({**fields, "feature": "rgb"}).classifier == CooccurrenceConfig()
    with pytest.raises(ValidationError, match="must end with rgb"):
        Manifest.model_validate({**fields, "feature": "npr"})
