"""One thing that was looked at, and what came of it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Outcome = Literal["ok", "warning", "fault"]


class Check(BaseModel):
    """A check's `name`, `outcome`, what was `seen`; unless ok, what is `wrong` and what would `mend` it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    outcome: Outcome
    seen: str
    wrong: str = ""
    mend: str = ""


def ok(name: str, seen: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name=name, outcome="ok", seen=seen)


def warning(name: str, seen: str, wrong: str, mend: str) -> Check:
    """Return a check that found what may do harm."""
    return Check(name=name, outcome="warning", seen=seen, wrong=wrong, mend=mend)


def fault(name: str, seen: str, wrong: str, mend: str) -> Check:
    """Return a check that found what loses verdicts, or keeps a worker from its work."""
    return Check(name=name, outcome="fault", seen=seen, wrong=wrong, mend=mend)
