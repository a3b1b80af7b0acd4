"""What the measurements hold, and the arithmetic behind them; no test asserts a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from detector.benchmark.paper_pipeline import PaperPipeline, weight_by_rule
from detector.benchmark.speed import (
    compare,
    count_flops,
    flops_a_picture,
    known_peak_tflops,
    measure,
    our_pipeline,
    sample_files,
    usual_dtypes,
)
from detector.bundle.files import BundleError, open_bundle
from detector.bundle.manifest import DnfConfig
from detector.cli.bench import bench
from detector.detector import Detector
from detector.images.decode import decode
from detector.networks.dnf import diffusion_noise_feature, quantised
from detector.networks.unet import load_unet
from tests.golden import weights_by_rule


class _Clock:
    """A clock that pipelines move by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_ratio_is_taken_round_by_round() -> None:
    """Rounds of 8/2, 9/3 and 10/2 seconds give the ratios 4, 3, 5 and the median 4; logits differ by 0.5."""
    clock = _Clock()
    # Each pipeline's first call is the round that is not measured.
    seconds = {"paper": iter([100.0, 8.0, 9.0, 10.0]), "ours": iter([100.0, 2.0, 3.0, 2.0])}

    def pipeline(name: str, logit: float) -> "list[float]":
        clock.now += next(seconds[name])
        return [logit, 0.0]

    found = compare(
        lambda _: pipeline("paper", 1.0),
        lambda _: pipeline("ours", 1.5),
        [b"", b""],
        rounds=3,
        clock=clock,
        processor_clock=clock,
    )
    assert found.ratios == (4.0, 3.0, 5.0)
    assert found.ratio == 4.0
    assert found.cpu_ratio == 4.0
    assert (found.paper_seconds, found.ours_seconds) == (4.5, 1.0)
    assert found.largest_logit_difference == 0.5


def test_each_round_runs_both_pipelines_and_changes_their_order() -> None:
    """After the round that is not measured: paper, ours; then ours, paper."""
    calls: list[str] = []
    clock = _Clock()

    def pipeline(name: str) -> "list[float]":
        calls.append(name)
        clock.now += 1
        return [0.0]

    compare(
        lambda _: pipeline("paper"),
        lambda _: pipeline("ours"),
        [b""],
        rounds=2,
        clock=clock,
        processor_clock=clock,
    )
    assert calls == ["paper", "ours", "paper", "ours", "ours", "paper"]


def test_the_operations_of_a_small_network_equal_those_counted_by_hand() -> None:
    """Conv 3->8, 3x3, 10x10 out: 2*27*8*100 = 43,200; conv 8->2, 1x1: 2*8*2*100 = 3,200."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert count_flops(network, torch.zeros(1, 3, 10, 10)) == 46_400


def test_the_operations_of_a_bundle_count_every_view_and_estimate(tiny_bundle: Path) -> None:
    """Four views cost four times one view; two timesteps add one more pass of the U-Net."""
    bundle = open_bundle(tiny_bundle)
    one = flops_a_picture(bundle)
    unet = load_unet(tiny_bundle / "unet")
    one_pass = count_flops(unet, torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.long))
    manifest = bundle.manifest
    assert 0 < one_pass < one
    four = manifest.model_copy(
        update={"preprocessing": manifest.preprocessing.model_copy(update={"views": 4})}
    )
    assert flops_a_picture(type(bundle)(bundle.folder, four, "")) == 4 * one
    twice = manifest.model_copy(update={"dnf": DnfConfig(timesteps=(0, 10))})
    assert flops_a_picture(type(bundle)(bundle.folder, twice, "")) == one + one_pass


def test_a_row_holds_every_stage_and_rates_that_agree(tiny_bundle: Path) -> None:
    """Pictures a second times operations a picture are the operations a second; the peak's share follows."""
    bundle = open_bundle(tiny_bundle)
    rows = measure(
        bundle, devices=("cpu",), dtypes=("float32", "bfloat16"), batch_sizes=(2,), rounds=1, peak_tflops=0.5
    )
    assert [(row.device, row.dtype, row.batch_size) for row in rows] == [
        ("cpu", "float32", 2),
        ("cpu", "bfloat16", 2),
    ]
    for row in rows:
        assert min(row.decode_ms, row.prepare_ms, row.dnf_ms, row.classify_ms) > 0
        stages = row.decode_ms + row.prepare_ms + row.dnf_ms + row.classify_ms
        assert row.speed == pytest.approx(1000 / stages)
        assert row.tflops == pytest.approx(row.speed * flops_a_picture(bundle) / 1e12)
        assert row.memory_bytes > 1 << 20
    assert rows[0].peak_share is None  # the peak is that of bfloat16
    assert rows[1].peak_share == pytest.approx(rows[1].tflops / 0.5)


def test_the_published_pipeline_saves_the_quantised_feature(tiny_bundle: Path, tmp_path: Path) -> None:
    """What is read back from its files equals `quantised` of the float32 feature, byte for byte."""
    pipeline = PaperPipeline(open_bundle(tiny_bundle), tmp_path, size=64)
    files = sample_files(2)
    saved = [np.asarray(Image.open(path)) for path in pipeline.save_features(files)]
    squashed = [
        torch.nn.functional.interpolate(
            torch.from_numpy(decode(data).pixels.copy()).permute(2, 0, 1)[None].float(),
            (64, 64),
            mode="bicubic",
            antialias=True,
        )
        for data in files
    ]
    with torch.inference_mode():
        x = torch.cat(squashed) / 255 * 2 - 1
        feature = diffusion_noise_feature(load_unet(tiny_bundle / "unet"), x, DnfConfig())
    expected = (quantised(feature) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert expected.max() > 0
    assert np.array_equal(np.stack(saved), expected)


def test_a_bundle_without_a_single_estimate_has_no_published_pipeline(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """A classifier of six channels cannot read the published picture: it is refused with a reason."""
    bundle = open_bundle(tiny_bundle)
    classifier = bundle.manifest.classifier.model_copy(update={"in_channels": 6})
    wide = type(bundle)(bundle.folder, bundle.manifest.model_copy(update={"classifier": classifier}), "")
    with pytest.raises(BundleError, match="single noise estimate"):
        PaperPipeline(wide, tmp_path)


def test_decoding_ahead_keeps_the_order_of_the_pictures(tiny_bundle: Path) -> None:
    """Five files, two at once, give the logits that they have alone."""
    from concurrent.futures import ThreadPoolExecutor

    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    files = sample_files(5)
    alone = [detector.examine([detector.prepare(decode(data).pixels)])[0].logit for data in files]
    with ThreadPoolExecutor(2) as pool:
        together = our_pipeline(detector, pool, at_once=2)(files)
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 5


def test_the_full_size_weights_follow_the_golden_rule() -> None:
    """Kernels, scales, biases and running statistics equal those behind the golden numbers."""
    shapes = {
        "a.weight": [4, 3, 3, 3],
        "n.weight": [4],
        "n.bias": [4],
        "n.running_mean": [4],
        "n.running_var": [4],
        "n.num_batches_tracked": [],
    }
    for name, expected in weights_by_rule(shapes, 5).items():
        assert torch.equal(weight_by_rule(name, torch.empty(shapes[name], dtype=expected.dtype), 5), expected)


def test_the_longest_fitting_name_gives_the_peak() -> None:
    """An H100 PCIe is not an H100 SXM, an A10 no A100, and an unknown card has no peak."""
    assert known_peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert known_peak_tflops("NVIDIA H100 PCIe") == 756
    assert known_peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    assert known_peak_tflops("NVIDIA A10") == 125
    assert known_peak_tflops("Some Other Card") is None


def test_the_table_and_the_json_come_from_one_run(tiny_bundle: Path, tmp_path: Path) -> None:
    """`bench BUNDLE --json FILE` prints the table and writes its rows, the machine and the operations."""
    out = tmp_path / "bench.json"
    options = ["--device", "cpu", "--dtype", "float32", "--batch-size", "1", "--rounds", "1", "--json"]
    result = CliRunner().invoke(bench, [str(tiny_bundle), *options, str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["flops_a_picture"] == flops_a_picture(open_bundle(tiny_bundle))
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


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["default", "--full-size"], "name no bundle"),
        (["--device", "abacus"], "is no device"),
        (["--device", "cuda:99"], "finds no device"),
        (["--paper", "--batch-size", "1", "--batch-size", "2"], "one batch size"),
        (["/nowhere/at/all"], "not_found"),
    ],
)
def test_wrong_usage_is_refused_with_a_reason(options: list[str], reason: str) -> None:
    """Exit status 2 and a detail, never a traceback."""
    result = CliRunner().invoke(bench, options)
    assert result.exit_code == 2
    assert reason in result.output
