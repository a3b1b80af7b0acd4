"""The operators' guides: their chapters and the chart values that they name; `tests/docs` checks the rest."""

import re
from typing import Any

from tests.deploy.documents import ALERTS_GUIDE, CHART, DEPLOY_GUIDE, GUIDES, headings, read_yaml
from worker.settings import Settings

PAGES = [
    GUIDES / f"{name}.md" for name in ("deploy", "operate", "alerts", "size-a-fleet", "secure-the-broker")
]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_the_guides_have_a_chapter_for_each_task() -> None:
    """Deploy, scale, size, roll out, roll back, drain, redrive, rotate secrets and respond to alerts."""
    assert {
        "deploy", "in-a-cluster", "scale", "size-a-fleet", "roll-out-a-new-bundle", "roll-back", "drain",
        "redrive", "rotate-secrets", "respond-to-an-alert", "secure-the-broker",
    } <= headings(TEXT)  # fmt: skip
    assert "doctor" in DEPLOY_GUIDE.read_text(encoding="utf-8")
    assert "dead-letters" in ALERTS_GUIDE.read_text(encoding="utf-8")


def test_every_chart_value_in_the_guides_exists() -> None:
    """Whatever is set with --set, or written as section.value, is in values.yaml."""
    values = read_yaml(CHART / "values.yaml")
    named = set(re.findall(r"--set ([A-Za-z0-9.]+)=", TEXT))
    sections = "|".join(values)
    named |= set(re.findall(rf"`((?:{sections})(?:\.[A-Za-z_]+)+)(?:=[^`]*)?`", TEXT))
    assert len(named) > 20
    for name in named:
        found: Any = values
        for part in name.split("."):
            if found == {}:  # settings by name
                assert part in Settings.model_fields, name
                break
            assert part in found, name
            found = found[part]
