"""The thresholds of a detector, without numpy: producers and consumers of events read them too."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Thresholds(BaseModel):
    """Two thresholds on the probability of *generated*, 0..1, with `review_from` <= `generated_from`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: From here on a picture goes to a moderator; below it is *real*.
    review_from: float = Field(ge=0, le=1)
    #: From here on a picture is *generated*.
    generated_from: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Thresholds":
        if self.review_from > self.generated_from:
            raise ValueError("review_from must not exceed generated_from")
        return self
