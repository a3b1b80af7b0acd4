"""Measurements and the arithmetic behind them; no test asserts a time."""

from pathlib import Path

import pytest
import torch
from torch import nn

from detector.benchmark.speed import (
    compare,
    count_flops,
    flops_of_features,
    flops_per_picture,
    known_peak_tflops,
    measure,
    our_pipeline,
    sample_files,
)
from detector.bundle.files import open_bundle
from detector.bundle.manifest import DnfConfig
from detector.detector import Detector
from detector.images.decode import decode
from detector.networks.unet import load_unet


class _Clock:
    """A clock that pipelines advance by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_ratio_is_taken_round_by_round() -> None:
    """Rounds of 8/2, 9/3 and 10/2 seconds give the ratios 4, 3, 5 and the median 4; logits differ by 0.5."""
    clock = _Clock()
    # The first call of each pipeline is the warm-up.
    seconds = {"paper": iter([100.0, 8.0, 9.0, 10.0]), "ours": iter([100.0, 2.0, 3.0, 2.0])}

    def pipeline(name: str, logit: float) -> "list[float]":
        clock.now += next(seconds[name])
        return [logit, 0.0]

    comparison = compare(
        lambda _: pipeline("paper", 1.0),
        lambda _: pipeline("ours", 1.5),
        [b"", b""],
        rounds=3,
        clock=clock,
        processor_clock=clock,
    )
    assert comparison.ratios == (4.0, 3.0, 5.0)
    assert comparison.ratio == 4.0
    assert comparison.cpu_ratio == 4.0
    assert (comparison.reference_seconds, comparison.ours_seconds) == (4.5, 1.0)
    assert (comparison.reference_cpu_seconds, comparison.ours_cpu_seconds) == (4.5, 1.0)
    assert comparison.largest_logit_difference == 0.5


def test_each_round_runs_both_pipelines_in_alternating_order() -> None:
    """After the warm-up: paper, ours; then ours, paper."""
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
    one = flops_per_picture(bundle)
    unet = load_unet(tiny_bundle / "unet")
    one_pass = count_flops(unet, torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.long))
    manifest = bundle.manifest
    assert 0 < one_pass < one
    four = manifest.model_copy(
        update={"preprocessing": manifest.preprocessing.model_copy(update={"views": 4})}
    )
    assert flops_per_picture(type(bundle)(bundle.folder, four, "")) == 4 * one
    twice = manifest.model_copy(update={"dnf": DnfConfig(timesteps=(0, 10))})
    assert flops_per_picture(type(bundle)(bundle.folder, twice, "")) == one + one_pass


def test_a_row_has_every_stage_and_consistent_rates(tiny_bundle: Path) -> None:
    """Operations per second are pictures per second times operations per picture; the share follows."""
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
        assert row.pictures_per_second == pytest.approx(1000 / stages)
        assert row.tflops == pytest.approx(row.pictures_per_second * flops_per_picture(bundle) / 1e12)
        assert row.dnf_tflops == pytest.approx(flops_of_features(bundle) / row.dnf_ms / 1e9)
        assert row.memory_bytes > 1 << 20
    assert rows[0].peak_share is None  # the peak is that of bfloat16
    assert rows[1].peak_share == pytest.approx(rows[1].tflops / 0.5)


def test_decoding_ahead_keeps_the_order_of_the_pictures(tiny_bundle: Path) -> None:
    """Five files, two at once, have the logits that they have alone."""
    from concurrent.futures import ThreadPoolExecutor

    detector = Detector.load(tiny_bundle, device="cpu", dtype="float32")
    files = sample_files(5)
    alone = [detector.examine([detector.prepare(decode(data).pixels)])[0].logit for data in files]
    with ThreadPoolExecutor(2) as pool:
        together = our_pipeline(detector, pool, at_once=2)(files)
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 5


def test_the_longest_matching_name_gives_the_peak() -> None:
    """An H100 PCIe is not an H100 SXM, an A10 is not an A100, and an unknown card has no peak."""
    assert known_peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert known_peak_tflops("NVIDIA H100 PCIe") == 756
    assert known_peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    assert known_peak_tflops("NVIDIA A10") == 125
    assert known_peak_tflops("Some Other Card") is None
