"""The heat map: where a picture's views overlap, the mean of their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from worker.contract.messages import ViewScore


@dataclass(frozen=True)
class Cell:
    """A rectangle of the picture that the same views cover."""

    x: int
    y: int
    width: int
    height: int
    #: Mean score of the views that cover it, 0..1.
    score: float


def cells(views: Sequence[ViewScore]) -> list[Cell]:
    """Return the parts into which the edges of the views cut the picture, without those that none covers."""
    columns = sorted({edge for view in views for edge in (view.x, view.x + view.width)})
    rows = sorted({edge for view in views for edge in (view.y, view.y + view.height)})
    found = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            scores = [
                view.score
                for view in views
                if view.x <= left < view.x + view.width and view.y <= top < view.y + view.height
            ]
            if scores:
                found.append(Cell(left, top, right - left, bottom - top, fmean(scores)))
    return found
