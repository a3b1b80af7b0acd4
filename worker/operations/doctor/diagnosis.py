"""The result of one diagnostic."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Outcome = Literal["ok", "warning", "fault"]


class Diagnosis(BaseModel):
    """What one diagnostic observed; a warning or a fault has a problem and a remedy, both sentences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    #: `warning`: may do harm. `fault`: loses verdicts, or keeps workers from working.
    outcome: Outcome
    observed: str
    problem: str = ""
    remedy: str = ""


def ok(name: str, observed: str) -> Diagnosis:
    """Return a diagnosis without a problem."""
    return Diagnosis(name=name, outcome="ok", observed=observed)


def warning(name: str, observed: str, problem: str, remedy: str) -> Diagnosis:
    """Return a diagnosis of something that may do harm."""
    return Diagnosis(name=name, outcome="warning", observed=observed, problem=problem, remedy=remedy)


def fault(name: str, observed: str, problem: str, remedy: str) -> Diagnosis:
    """Return a diagnosis of something that loses verdicts or keeps workers from working."""
    return Diagnosis(name=name, outcome="fault", observed=observed, problem=problem, remedy=remedy)
