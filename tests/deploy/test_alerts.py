"""The alert rules: valid by promtool, tested by promtool, each with a section in the runbook."""

import json
import re

import pytest

from detector.bundle.files import resolve
from tests.deploy.documents import (
    ALERTS,
    ALERTS_GUIDE,
    PROMETHEUS,
    ROOT,
    alerts,
    dashboard,
    headings,
    metric_names,
    read_yaml,
)
from tests.deploy.prometheus import PROMTOOL, promtool
from worker.operations.exporter import DOCUMENTED as EXPORTED
from worker.telemetry.metrics import DOCUMENTED as COUNTED

UNIT_TESTS = [ROOT / "tests" / "deploy" / name for name in ("alerts_tests.yml", "drift_tests.yml")]

#: From prometheus_client's process collector and NVIDIA's DCGM exporter.
OTHERS = {"process_start_time_seconds", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED"}


def known() -> set[str]:
    """Return every metric that queries may read."""
    return {metric.name for metric in (*COUNTED, *EXPORTED)} | OTHERS


def test_prometheus_accepts_the_rules_and_its_configuration() -> None:
    """By promtool, or without it by the keys of each rule."""
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
    assert read_yaml(PROMETHEUS)["rule_files"] == [ALERTS.name]
    if PROMTOOL:
        assert f"{len(rules)} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)
        promtool("check", "config", "--lint=all", "--lint-fatal", PROMETHEUS)


def test_every_alert_fires_at_its_fault_and_only_then() -> None:
    """By promtool's unit tests; without it, each alert has a firing and a silent case."""
    fires, silent = set(), set()
    for test in [test for path in UNIT_TESTS for test in read_yaml(path)["tests"]]:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else silent).add(case["alertname"])
    names = {rule["alert"] for rule in alerts()}
    assert fires == names
    assert silent == names
    if PROMTOOL:
        assert promtool("test", "rules", *UNIT_TESTS).count("SUCCESS") == len(UNIT_TESTS)


def test_every_alert_reads_metrics_that_exist() -> None:
    """A mistyped name never fires."""
    for rule in alerts():
        names = metric_names(rule["expr"])
        assert names, rule["alert"]
        assert names <= known(), rule["alert"]


def test_every_alert_says_what_it_means_and_links_to_its_page_in_the_runbook() -> None:
    """Severity, a detail, a description, and a link whose heading exists."""
    anchors = headings(ALERTS_GUIDE.read_text(encoding="utf-8"))
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert re.fullmatch(r"[A-Z].*\.", rule["annotations"]["summary"])
        assert rule["annotations"]["description"].endswith(".")
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert ROOT / page == ALERTS_GUIDE
        assert anchor == rule["alert"].lower()
        assert anchor in anchors, f"{page} has no heading for {rule['alert']}"


def test_alert_and_dashboard_have_the_bounds_of_the_model_card() -> None:
    """The shares of review and generated on the unseen pictures in the default bundle's manifest."""
    manifest = resolve("default").manifest
    figures = json.loads(json.dumps(manifest.figures))["test_unseen"]
    photographs = figures["false_positive_rate"] + figures["real_reviewed"]
    generated = figures["detection_rate"] + figures["generated_reviewed"]
    (rule,) = [rule for rule in alerts() if rule["alert"] == "DnfVerdictsOffModelCard"]
    assert f'name="{manifest.name}",version="{manifest.version}"' in rule["expr"], (
        "name the bundle that ships"
    )
    assert float(re.findall(r"1\.25 \* ([\d.]+)", rule["expr"])[0]) == pytest.approx(generated)
    assert float(re.findall(r"0\.5 \* ([\d.]+)", rule["expr"])[0]) == pytest.approx(photographs)
    constants = {
        v["name"]: float(v["query"]) for v in dashboard()["templating"]["list"] if v["type"] == "constant"
    }
    assert constants == {
        "card_photographs": pytest.approx(photographs),
        "card_generated": pytest.approx(generated),
    }
