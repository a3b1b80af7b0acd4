"""Templates, what they know, and the files that browsers load."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from worker.contract.messages import DecisionBasis, DecisionOutcome

WEB = Path(__file__).parents[1]
STATIC = WEB / "static"

OUTCOMES: tuple[DecisionOutcome, ...] = get_args(DecisionOutcome)
BASES: tuple[DecisionBasis, ...] = get_args(DecisionBasis)
_OUTCOMES: Mapping[str, str] = {
    "generated": "Generated",
    "real": "Real",
    "edited": "Edited",
    "cannot_tell": "Cannot tell",
}
_BASES: Mapping[str, str] = {
    "opinion": "Opinion",
    "source_found": "Source found",
    "uploader_said": "Uploader said",
    "credentials": "Credentials",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_KILO = 1000


def html(template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page made from a template; all text in it is escaped."""
    return HTMLResponse(_environment().get_template(template).render(**values), status)


def text(template: str, **values: Any) -> str:
    """Return a part of a page made from a template."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(WEB / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["static"] = static_url
    environment.filters.update(
        outcome=lambda name: _OUTCOMES.get(name, name),
        basis=lambda name: _BASES.get(name, name),
        iso=lambda moment: moment.astimezone(UTC).isoformat(timespec="seconds"),
        moment=lambda moment: f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        age=age,
        clock=lambda seconds: f"{int(seconds) // _MINUTE}:{int(seconds) % _MINUTE:02}",
        bytes=_bytes,
        trim_number=lambda number: f"{number:g}",
    )
    return environment


@cache
def static_url(name: str) -> str:
    """Return the address of a file, which changes with its content."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:16]}"


def age(moment: datetime) -> str:
    """Return how long ago a moment was, or how long it is until then, in its largest unit."""
    seconds = abs((datetime.now(UTC) - moment).total_seconds())
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} d"


def _bytes(count: int) -> str:
    if count < _KILO:
        return f"{count} bytes"
    if count < _KILO**2:
        return f"{count / _KILO:.0f} kB"
    return f"{count / _KILO**2:.1f} MB"
