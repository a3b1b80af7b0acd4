"""The files of deploy/, parsed."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "chart"
SCHEMAS = Path(__file__).parent / "schemas"
GUIDES = ROOT / "docs" / "how-to"
ALERTS_GUIDE = GUIDES / "alerts.md"
DEPLOY_GUIDE = GUIDES / "deploy.md"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
PROMETHEUS = DEPLOY / "prometheus" / "prometheus.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "fleet.json"


def manifests_in(text: str) -> list[Any]:
    """Return the documents of a YAML text, without empty ones; the parser in C takes a tenth of the time."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def read_yaml(path: Path) -> Any:
    """Return a YAML file's only document."""
    (document,) = manifests_in(path.read_text(encoding="utf-8"))
    return document


@functools.cache
def schema(name: str) -> Any:
    """Return a JSON Schema of tests/deploy/schemas."""
    return json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))


def alerts() -> list[dict[str, Any]]:
    """Return every alert."""
    return [rule for group in read_yaml(ALERTS)["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, without rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def with_variables(query: str) -> str:
    """Return a panel's query with its variables substituted: every fleet and queue, a minute, constants."""
    values = {"namespace": ".*", "release": ".*", "queue": ".*", "__rate_interval": "1m"}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "constant":
            values[variable["name"]] = variable["query"]
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], query)


def queries() -> Iterator[tuple[str, str]]:
    """Yield (panel title, query) of the dashboard, with variables substituted."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], with_variables(target["expr"])


def metric_names(query: str) -> set[str]:
    """Return the metrics in a PromQL expression, without the suffixes of histograms."""
    names = set(re.findall(r"\b(?:(?:dnf|process)_[a-z0-9_]+|DCGM_[A-Z_]+)\b", query))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def headings(markdown: str) -> set[str]:
    """Return the anchors of a page's headings, as code hosts generate them."""
    lines = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL).splitlines()
    titles = [line.lstrip("#").strip() for line in lines if re.match(r"#{1,6} ", line)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
