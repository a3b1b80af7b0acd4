"""The settings page: `python -m deploy.generators.settings_page docs/reference/settings.md` writes it."""

import sys
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from worker.settings import Settings

_HEAD = """\
# Settings

Generated from the code by `make reference`.

Workers, producers and consumers read their settings from environment variables. `dnf-worker config` shows the
settings in force with secrets masked, and `dnf-worker doctor` checks them.

| variable | default | meaning |
|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    rows = [
        f"| `DNF_{name.upper()}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.default_factory is not None or value is None:  # the description says what unset means
        return ""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return f"`{','.join(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
