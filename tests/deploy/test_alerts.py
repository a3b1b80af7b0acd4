"""The alert rules: valid by promtool, tested by promtool, each with a section in the runbook."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.generators.metrics_page import DOCUMENTED
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

UNIT_TESTS = [ROOT / "tests" / "deploy" / name for name in ("alerts_tests.yml", "drift_tests.yml")]

#: From prometheus_client's process collector and NVIDIA's DCGM exporter.
OTHERS = {"process_start_time_seconds", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED"}


def known() -> set[str]:
    """Return every metric that queries may read."""
    return {metric.name for metric in DOCUMENTED} | OTHERS


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


#: A large fleet without a fault: added up with another one, it would hide the other's.
HEALTHY = {
    'dnf_redis_up{job="dnf-exporter"': "1x400",
    "dnf_workers_alive{": "2x400",
    'dnf_queue_waiting{queue="image-checks"': "0x400",
    "dnf_fleet_backlog_seconds{": "1x400",
    'dnf_queue_oldest_age_seconds{queue="image-checks.urgent"': "1x400",
    'dnf_batcher_stalled_seconds{instance="other"': "0x400",
    'process_start_time_seconds{job="dnf-worker",instance="other"': "100x400",
    'dnf_checks_total{outcome="real",reason=""': "0+70000x400",
    'dnf_checks_total{outcome="review",reason=""': "0+30000x400",
    "dnf_redeliveries_total{": "0x400",
    'dnf_retries_total{reason="storage_unavailable"': "0x400",
    "dnf_dead_letter_stream_length{": "50x400",
    "dnf_intake_paused{": "0x400",
    'dnf_intake_limit_used_ratio{limit="verdict_stream"': "0.1x400",
    'dnf_verdict_stream_oldest_unacknowledged_age_seconds{group="audit"': "10x400",
    "dnf_verdict_retention_seconds{": "60480000x400",
    'dnf_relay_up{instance="other"': "1x400",
    "dnf_outbox_oldest_age_seconds{": "0x400",
    'dnf_decision_stream_oldest_unacknowledged_age_seconds{group="audit"': "10x400",
    "dnf_reviews_overdue{": "0x400",
    'dnf_reviews_capped_today{origin="audit"': "0x400",
    'dnf_score_bucket{le="0.5"': "0+100000x400",
    'dnf_score_bucket{le="+Inf"': "0+200000x400",
    "dnf_score_count{": "0+200000x400",
    'dnf_model_info{name="dnf-small",version="5"': "1x400",
    'dnf_shadow_disagreements_total{serving="real",shadow="review"': "0x400",
    "dnf_shadow_score_difference_count{": "0+60000x400",
}
LARGE = 'namespace="large",release="dnf"}'
SMALL = {"namespace": "small", "release": "dnf"}


def _beside_a_healthy_fleet(test: dict[str, Any]) -> dict[str, Any]:
    """Return a unit test in which the fault is that of a second fleet."""
    changed = copy.deepcopy(test)
    labels = ",".join(f'{name}="{value}"' for name, value in SMALL.items())
    for series in changed["input_series"]:
        if not series["series"].startswith("DCGM_"):
            series["series"] = f"{series['series'].removesuffix('}')},{labels}}}"
    for start, values in HEALTHY.items():
        separator = "" if start.endswith("{") else ","
        changed["input_series"].append({"series": f"{start}{separator}{LARGE}", "values": values})
    for case in changed["alert_rule_test"]:
        for alert in case["exp_alerts"]:
            alert["exp_labels"] |= SMALL
    return changed


def test_every_alert_fires_for_the_second_fleet_of_a_prometheus(tmp_path: Path) -> None:
    """With the namespace and release of the faulty one, beside a large fleet without a fault.

    Without promtool: no expression adds up fleets.
    """
    for rule in alerts():
        fleets = rule["expr"].replace("avg(DCGM_FI_DEV_GPU_UTIL)", "").replace("absent(dnf_redis_up)", "")
        for aggregation in re.findall(r"\b(?:sum|max|min|avg|count|group) ?((?:by )?\(.{0,24})", fleets):
            assert aggregation.startswith("by (namespace, release"), rule["alert"]
        assert not re.search(r"\bon \(\)", fleets) or rule["alert"] == "DnfGpuIdle"
    if not PROMTOOL:
        return
    for path in UNIT_TESTS:
        suite = read_yaml(path)
        suite["rule_files"] = [str(ALERTS)]
        suite["tests"] = [_beside_a_healthy_fleet(test) for test in suite["tests"]]
        (tmp_path / path.name).write_text(yaml.safe_dump(suite), encoding="utf-8")
        promtool("test", "rules", tmp_path / path.name)


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
