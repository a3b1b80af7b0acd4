"""The upper confidence bound of a share that is estimated from a weighted sample."""

import math

import numpy as np
from numpy.typing import NDArray

# One minus the confidence of a bound.
_TAIL = 0.05
_ROUNDS = 400


def pictures_needed(share: float) -> int:
    """Return the smallest equally weighted sample whose bound, with no picture counted, is at most `share`.

    299 for 0.01: 0.99 ** 299 < 0.05 < 0.99 ** 298.
    """
    return math.ceil(math.log(_TAIL) / math.log1p(-share))


def upper_bound(weights: NDArray[np.float64], counted: NDArray[np.bool_], largest: float) -> float:
    """Return the upper 95 % bound, 0..1, of the weighted share of the `counted` pictures.

    `weights` (N,) are one over each picture's sampling probability, and `largest` is the greatest weight that
    a counted picture can have. With equal weights this is the bound of Clopper and Pearson (1934). Otherwise
    the sample is replaced by one of equal weights with the same share and the same variance (Korn and
    Graubard 1998); as in Fay and Feuer (1997) one more picture of the largest weight is counted first, so
    that a sample without any has a bound too.
    """
    return _beta_quantile(1 - _TAIL, *_beta_parameters(weights, counted, largest))


def keeps_budget(
    weights: NDArray[np.float64], counted: NDArray[np.bool_], largest: float, budget: float
) -> bool:
    """Return whether the `upper_bound` of these is at most `budget`, 0..1; quicker than the bound."""
    return _beta_distribution(budget, *_beta_parameters(weights, counted, largest)) >= 1 - _TAIL


def _beta_parameters(
    weights: NDArray[np.float64], counted: NDArray[np.bool_], largest: float
) -> tuple[float, float]:
    total = float(weights.sum()) + largest
    others = float(weights[~counted].sum())
    share = 1 - others / total
    # Linearised variance of a ratio of two weighted sums.
    counted_squares = float((weights[counted] ** 2).sum()) + largest**2
    other_squares = float((weights[~counted] ** 2).sum())
    variance = (counted_squares * (1 - share) ** 2 + other_squares * share**2) / total**2
    size = share * (1 - share) / variance if others else 0.0
    return size * share, size * (1 - share)


def _beta_quantile(probability: float, a: float, b: float) -> float:
    """Return the quantile; 1 where every picture is counted."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:  # noqa: PLR2004 - far below any share that matters
        middle = (low + high) / 2
        if _beta_distribution(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return high


def _beta_distribution(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function (DLMF 8.17.22, by the modified method of Lentz)."""
    if x in {0.0, 1.0}:
        return x
    if not b:
        return 0.0
    # The continued fraction converges quickly on this side of the mean only.
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_distribution(1 - x, b, a)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logarithm + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for step in range(_ROUNDS):
        half = step // 2
        if step == 0:
            numerator = 1.0
        elif step % 2 == 0:
            numerator = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        else:
            numerator = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        d = 1 / (1 + numerator * d or tiny)
        c = 1 + numerator / c or tiny
        value *= c * d
        if abs(c * d - 1) < 1e-14:  # noqa: PLR2004 - the precision of a float
            break
    return front * (value - 1)
