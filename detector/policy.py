"""A probability becomes a verdict: real, review or generated."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

VerdictName = Literal["real", "review", "generated"]


class Thresholds(BaseModel):
    """The two cuts on the probability of *generated*, both in 0..1, `review_from` <= `generated_from`.

    Below `review_from` a picture is called real; from `generated_from` on, generated; between them it
    goes to a person.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    review_from: float = Field(ge=0, le=1)
    generated_from: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Thresholds":
        if self.review_from > self.generated_from:
            raise ValueError("review_from must not exceed generated_from")
        return self


def decide(probability: float, thresholds: Thresholds) -> VerdictName:
    """Return the verdict on a picture whose calibrated probability of *generated* is given, in 0..1."""
    if probability >= thresholds.generated_from:
        return "generated"
    if probability >= thresholds.review_from:
        return "review"
    return "real"
