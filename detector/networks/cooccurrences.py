"""A linear classifier on the co-occurrences of neighbouring residuals: small, fast, and trained in minutes.

Fridrich and Kodovsky, "Rich Models for Steganalysis of Digital Images", IEEE Transactions on Information
Forensics and Security 7(3), 2012: how often which values of a residual stand side by side says how a picture
was made, and little of what it shows. A linear classifier learns it from few pictures.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

# A residual is rounded to -2..2 steps, and three neighbours have one of 5 x 5 x 5 codes.
_LARGEST = 2
_VALUES = 2 * _LARGEST + 1
_CODES = _VALUES**3
# The deviation of a residual is measured in squares of this side.
_NEIGHBOURHOOD = 7
# Below this deviation a residual is flat: in grey levels, and of an estimate, whose noise has about one.
_FLAT_PICTURE, _FLAT_ESTIMATE = 0.25, 0.01
# Steps of the codes over channels, in local deviations.
_CHANNEL_STEP = 0.7
#: Channels of a picture, which come last in the classifier's input.
_PICTURE_CHANNELS = 3


def _alike(*others: Tensor) -> Tensor:
    """Return for each code the number of its class, given the codes that count as the same."""
    lowest = torch.stack([code_grid(), *others]).amin(dim=0)
    classes: Tensor = lowest.flatten().unique(return_inverse=True)[1]
    return classes


def code_grid() -> Tensor:
    """Return all codes by their three values, (5, 5, 5)."""
    return torch.arange(_CODES).view(_VALUES, _VALUES, _VALUES)


# A residual and its negative are alike, and in space a row of neighbours read backwards.
_IN_SPACE = _alike(
    code_grid().flip(0, 1, 2), code_grid().permute(2, 1, 0), code_grid().permute(2, 1, 0).flip(0, 1, 2)
)
_OVER_CHANNELS = _alike(code_grid().flip(0, 1, 2))


def cooccurrences(x: Tensor) -> Tensor:
    """Describe views `x` (B, C, H, W): the estimates of a U-Net, if any, and a picture in -1..1 as RGB.

    Returns (B, D) float32, the square roots of the shares of each code; H and W are at least 8.
    """
    x = x.float()
    estimates, picture = x[:, :-_PICTURE_CHANNELS], x[:, -_PICTURE_CHANNELS:]
    levels = ((picture + 1) * 127.5).round()
    parts = [*_of_picture(levels)]
    for first in range(0, estimates.shape[1], _PICTURE_CHANNELS):
        parts += _of_estimate(estimates[:, first : first + _PICTURE_CHANNELS])
    return torch.cat(parts, dim=1).sqrt()


def cooccurrence_features(channels: int) -> int:
    """Return the number of features D of views with so many channels."""
    return cooccurrences(torch.zeros(1, channels, 16, 16)).shape[1]


def _of_picture(levels: Tensor) -> Iterator[Tensor]:
    """Describe first and second differences of a picture (B, 3, H, W) in grey levels."""
    for residual in _differences(levels):
        yield from _in_space(_colour_differences(residual))
        yield _over_channels(residual / _deviation(residual[:, 1:2], _FLAT_PICTURE) / _CHANNEL_STEP)


def _of_estimate(estimate: Tensor) -> Iterator[Tensor]:
    """Describe an estimate (B, 3, H, W) of a U-Net."""
    planes = _colour_differences(estimate)
    yield from _in_space(planes / _deviation(planes, _FLAT_ESTIMATE))
    yield _over_channels(estimate / _deviation(estimate[:, 1:2], _FLAT_ESTIMATE) / _CHANNEL_STEP)


def _differences(levels: Tensor) -> Iterator[Tensor]:
    yield levels[..., :, 1:] - levels[..., :, :-1]
    yield levels[..., 1:, :] - levels[..., :-1, :]
    yield (levels[..., :, 2:] - 2 * levels[..., :, 1:-1] + levels[..., :, :-2]) / 2
    yield (levels[..., 2:, :] - 2 * levels[..., 1:-1, :] + levels[..., :-2, :]) / 2


def _colour_differences(rgb: Tensor) -> Tensor:
    """Return green, red less green and blue less green of (B, 3, H, W)."""
    green = rgb[:, 1:2]
    return torch.cat([green, rgb[:, 0:1] - green, rgb[:, 2:3] - green], dim=1)


def _deviation(residual: Tensor, least: float) -> Tensor:
    """Return the local deviation of a residual (B, C, H, W), never below `least`."""
    side, margin = _NEIGHBOURHOOD, _NEIGHBOURHOOD // 2
    # Columns, then rows: a third of the time of a square.
    mean = avg_pool2d(residual.square(), (side, 1), 1, (margin, 0), count_include_pad=False)
    mean = avg_pool2d(mean, (1, side), 1, (0, margin), count_include_pad=False)
    return mean.sqrt() + least


def _in_space(planes: Tensor) -> Iterator[Tensor]:
    """Yield the shares of each class along rows and along columns of green, and their mean elsewhere."""
    values = _rounded(planes)
    along = _shares(_codes(values[..., :, :-2], values[..., :, 1:-1], values[..., :, 2:]), _IN_SPACE)
    across = _shares(_codes(values[..., :-2, :], values[..., 1:-1, :], values[..., 2:, :]), _IN_SPACE)
    yield along[:, 0]
    yield across[:, 0]
    yield ((along[:, 1:] + across[:, 1:]) / 2).flatten(1)


def _over_channels(residual: Tensor) -> Tensor:
    """Return the shares of each class among the three channels of the pixels of (B, 3, H, W)."""
    values = _rounded(residual)
    return _shares(_codes(*(values[:, channel : channel + 1] for channel in range(3))), _OVER_CHANNELS)[:, 0]


def _rounded(residual: Tensor) -> Tensor:
    return residual.round().clamp(-_LARGEST, _LARGEST)


def _codes(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    # Whole numbers in float32, which PyTorch adds several times as fast as integers.
    return (first * _VALUES + second) * _VALUES + third + _CODES // 2


def _shares(codes: Tensor, classes: Tensor) -> Tensor:
    """Return the share of each class in planes of codes, (B, C, H, W) to (B, C, classes)."""
    batch, channels, height, width = codes.shape
    planes = batch * channels
    offsets = torch.arange(planes, dtype=torch.int32, device=codes.device).view(-1, 1) * _CODES
    numbered = codes.reshape(planes, -1).to(torch.int32) + offsets
    counts = torch.bincount(numbered.flatten(), minlength=planes * _CODES).view(planes, _CODES)
    classes = classes.to(codes.device)
    shares = torch.zeros(planes, int(classes.max()) + 1, device=codes.device)
    shares.index_add_(1, classes, counts / (height * width))
    return shares.view(batch, channels, -1)


class CooccurrenceClassifier(nn.Module):
    """A linear function of `cooccurrences`: (B, C, H, W) to logits (B, 1), positive for *generated*."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cooccurrence_features(in_channels), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 1) for a batch (B, in_channels, H, W)."""
        logits: Tensor = self.linear(cooccurrences(x).to(self.linear.weight.dtype))
        return logits
