"""dnf-detector bench: its table, its JSON file and its usage errors."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from detector.benchmark.speed import flops_per_picture, usual_dtypes
from detector.bundle.files import open_bundle
from detector.cli.bench import bench


def test_the_table_and_the_json_come_from_one_run(tiny_bundle: Path, tmp_path: Path) -> None:
    """`bench BUNDLE --json FILE` prints the table and writes its rows, machine and operations."""
    out = tmp_path / "bench.json"
    options = ["--device", "cpu", "--dtype", "float32", "--batch-size", "1", "--rounds", "1", "--json"]
    result = CliRunner().invoke(bench, [str(tiny_bundle), *options, str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["flops_per_picture"] == flops_per_picture(open_bundle(tiny_bundle))
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert len(record["rows"]) == 1
    assert "float32" in result.output
    assert record["comparison"] is None


def test_the_comparison_is_printed_with_its_spread(tiny_bundle: Path, tmp_path: Path) -> None:
    """`bench --paper` writes a ratio for each round and prints their median."""
    out = tmp_path / "bench.json"
    options = ["--paper", "--device", "cpu", "--batch-size", "1", "--rounds", "2", "--json", str(out)]
    result = CliRunner().invoke(bench, [str(tiny_bundle), *options])
    assert result.exit_code == 0, result.output
    comparison = json.loads(out.read_text())["comparison"]
    assert len(comparison["ratios"]) == 2
    assert f"{comparison['ratio']:.2f} times as fast" in result.output
    assert comparison["ours"].startswith(f"cpu, {usual_dtypes('cpu')[-1]}")


def test_the_accelerated_layers_are_compared_with_pytorchs(tiny_bundle: Path, tmp_path: Path) -> None:
    """`bench --plain` measures both in processor time and says how far their answers differ: below 1e-3."""
    out = tmp_path / "bench.json"
    options = ["--plain", "--device", "cpu", "--batch-size", "1", "--rounds", "1", "--json", str(out)]
    result = CliRunner().invoke(bench, [str(tiny_bundle), *options])
    assert result.exit_code == 0, result.output
    comparison = json.loads(out.read_text())["comparison"]
    assert comparison["reference"] == "plain: float32, PyTorch's layers"
    assert comparison["ours"].startswith("cpu, float32, ")
    assert min(comparison["reference_cpu_seconds"], comparison["ours_cpu_seconds"]) > 0
    assert comparison["largest_logit_difference"] < 1e-3
    assert "by processor time" in result.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["default", "--full-size"], "name no bundle"),
        (["--device", "abacus"], "is not a device"),
        (["--device", "cuda:99"], "finds no device"),
        (["--paper", "--batch-size", "1", "--batch-size", "2"], "one batch size"),
        (["--paper", "--plain"], "give one of them"),
        (["/nowhere/at/all"], "not_found"),
    ],
)
def test_wrong_usage_is_reported_with_a_reason(options: list[str], reason: str) -> None:
    """Exit status 2 and a message without a traceback."""
    result = CliRunner().invoke(bench, options)
    assert result.exit_code == 2
    assert reason in result.output
