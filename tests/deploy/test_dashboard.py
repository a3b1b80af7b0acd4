"""The Grafana dashboard."""

import re
from itertools import combinations

import pytest

from tests.deploy.documents import dashboard, metric_names, panels, queries
from tests.deploy.test_alerts import known

# Grafana's names for units.
UNITS = {"s", "short", "ops", "percentunit", "bytes", "none"}
COLUMNS = 24


def test_every_panel_has_a_description_and_a_unit() -> None:
    """And a unique title, and the data source that the viewer chose."""
    titles = [(panel["type"], panel["title"]) for panel in panels()]
    assert len(set(titles)) == len(titles)
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF")[: len(panel["targets"])]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            if panel["type"] == "timeseries":
                assert target["legendFormat"]


def test_panels_do_not_overlap() -> None:
    """None leaves the grid, and the ids are unique."""
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in every:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= COLUMNS
    for one, other in combinations((panel["gridPos"] for panel in every), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert every[0]["type"] == "row"


def test_every_legend_uses_labels_that_its_query_keeps() -> None:
    """A label that is aggregated away would be empty."""
    for panel in panels():
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = {
                label.strip()
                for group in re.findall(r"\bby \(([^)]*)\)", target["expr"])
                for label in group.split(",")
            }
            assert labels <= kept, panel["title"]


@pytest.mark.parametrize("title", [panel["title"] for panel in panels()])
def test_every_query_reads_metrics_that_exist(title: str) -> None:
    """A mistyped name would leave a panel empty."""
    for name, query in queries():
        if name == title:
            assert metric_names(query) <= known()


def test_the_dashboard_covers_what_an_operator_needs() -> None:
    """Rate, backlog, latency by stage, batches, GPU, verdicts, drift, dead letters, shadow, consumers."""
    shown = set().union(*(metric_names(query) for _, query in queries()))
    assert shown >= {
        "dnf_checks_per_second", "dnf_fleet_backlog_seconds", "dnf_queue_oldest_age_seconds", "dnf_score",
        "dnf_batch_size", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_GPU_UTIL", "dnf_checks_total",
        "dnf_stage_seconds",
        "dnf_dead_letter_stream_length", "dnf_shadow_score_difference", "dnf_shadow_failures_total",
        "dnf_verdict_stream_lag", "dnf_verdict_stream_oldest_unacknowledged_age_seconds",
        "dnf_intake_limit_used_ratio", "dnf_intake_paused", "dnf_workers_alive",
        "dnf_model_info", "dnf_batcher_stalled_seconds",
    }  # fmt: skip


def test_every_query_is_about_the_chosen_fleet() -> None:
    """Each metric of ours is selected by namespace and release; no total takes the largest fleet for all."""
    for panel in panels():
        for target in panel["targets"]:
            names = re.findall(r"\bdnf_[a-z0-9_]+\b(.{0,60})", target["expr"])
            chosen = '{namespace=~"$namespace",release=~"$release"'
            assert all(rest.startswith(chosen) for rest in names), panel["title"]


def test_variables_are_the_data_source_the_fleet_and_the_queue() -> None:
    """Every variable in a query is defined, and every defined variable is used."""
    board = dashboard()
    defined = {variable["name"] for variable in board["templating"]["list"]}
    text = str(board["panels"])
    used = set(re.findall(r"\$\{?(\w+)\}?", text)) - {"__rate_interval"}
    assert used == defined
