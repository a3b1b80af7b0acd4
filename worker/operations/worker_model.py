"""What a plan assumes of one worker."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WorkerModel:
    """One worker, as measured.

    `pictures_a_second` with full batches; `start_seconds` from the pod's creation (image pull, model load,
    warm-up) until it consumes; `fixed_share` of a full batch's time is what the smallest batch takes too: 0
    on a CPU, towards 1 on a GPU; `outside_seconds` a check spends in the worker outside of its batch (fetch,
    decode, publish). `exponential` times are for the comparison with theory.
    """

    pictures_a_second: float
    start_seconds: float = 90.0
    batch_size: int = 16
    fixed_share: float = 0.0
    outside_seconds: float = 0.1
    times: Literal["constant", "exponential"] = "constant"

    def batch_seconds(self, pictures: float) -> float:
        """Return the time of a batch of so many pictures, on average."""
        return (
            self.fixed_share * self.batch_size + (1 - self.fixed_share) * pictures
        ) / self.pictures_a_second

    def in_work(self, rate: float) -> float:
        """Return the checks in work in one worker that does `rate` checks a second, at most what it can."""
        batch = 1.0
        if self.fixed_share:
            # A batch is what came while the one before was computed.
            seconds = self.fixed_share * self.batch_size / self.pictures_a_second
            came = rate * seconds / (1 - rate * (1 - self.fixed_share) / self.pictures_a_second)
            batch = min(max(came, 1.0), float(self.batch_size))
        return rate * (self.batch_seconds(batch) + self.outside_seconds)
