"""Accelerated layers compute the same as PyTorch's, and are not used where they cannot run."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from structlog.testing import capture_logs
from torch import nn
from torch.nn.functional import conv2d, group_norm, interpolate, silu

from detector.acceleration.cpu_layers import Convolution, FusedBasicBlock, FusedResidualBlock, FusedUnet
from detector.acceleration.cuda_graphs import CompiledNetwork, fitting_batch, padded, padded_size
from detector.acceleration.inference import accelerate
from detector.acceleration.kernels import CpuKernels, KernelsUnavailableError, cpu_kernels, cpu_target
from detector.benchmark.speed import sample_files
from detector.bundle.manifest import DnfConfig, ResNetConfig
from detector.detector import Detector
from detector.images.decode import decode
from detector.networks.dnf import diffusion_noise_feature
from detector.networks.resnet import ResNet
from detector.networks.unet import Unet
from detector.training.unet import build_unet

CPU = torch.device("cpu")
TARGETS = ["AVX2", "AVX512", "AVX512-BF16"]


def _kernels(target: str, dtype: torch.dtype) -> CpuKernels:
    """Provide kernels; skip on a machine without a compiler or the instructions."""
    try:
        if TARGETS.index(target) > TARGETS.index(cpu_target()):
            pytest.skip(f"this CPU has no {target}")
        return cpu_kernels(dtype, target)
    except KernelsUnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(
    scope="module", params=[(t, torch.float32) for t in TARGETS] + [(TARGETS[-1], torch.bfloat16)]
)
def kernels(request: pytest.FixtureRequest) -> tuple[CpuKernels, torch.dtype]:
    """Provide the kernels of each target that this machine can run, with their type."""
    target, dtype = request.param
    return _kernels(target, dtype), dtype


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _last(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("channels", "outputs", "height", "width"),
    [(16, 16, 8, 8), (32, 96, 7, 9), (64, 64, 5, 2), (272, 32, 6, 6), (48, 48, 34, 21), (16, 128, 1, 3)],
)
def test_the_winograd_convolution_is_about_as_exact_as_the_plain_one(
    kernels: tuple[CpuKernels, torch.dtype], channels: int, outputs: int, height: int, width: int
) -> None:
    """Its error against float64 is at most 1.6 times that of PyTorch's bfloat16, and below 1e-5 in float32.

    For sizes that fill the tiles and sizes that do not. The transform rounds its inputs once more.
    """
    compiled, dtype = kernels
    x = _last(_random(2, channels, height, width), dtype)
    weight = _random(outputs, channels, 3, 3, seed=1) / (9 * channels) ** 0.5
    bias = _random(2, outputs, seed=2)
    residual = _last(_random(2, outputs, height, width, seed=3), dtype)
    exact = conv2d(x.double(), weight.double(), padding=1) + bias[:, :, None, None] + residual
    found = compiled.convolve(x, compiled.packed_weights(weight), bias, residual)
    assert found.shape == exact.shape
    error = (found.double() - exact).std()
    if dtype == torch.float32:
        assert error < 1e-5 * exact.std()
    else:
        plain = conv2d(x, weight.to(dtype), padding=1) + bias[:, :, None, None].to(dtype) + residual
        assert error < 1.6 * (plain.double() - exact).std()
        assert error < 0.01 * exact.std()


def test_the_winograd_convolution_enlarges_its_input_and_cuts_negative_results(
    kernels: tuple[CpuKernels, torch.dtype],
) -> None:
    """`doubled` equals a nearest-neighbour enlargement first, `relu` a ReLU afterwards; NaN stays NaN."""
    compiled, dtype = kernels
    x = _last(_random(2, 32, 5, 9), dtype)
    weight, bias = _random(16, 32, 3, 3, seed=1) / 17, _random(2, 16, seed=2)
    enlarged = interpolate(x.double(), scale_factor=2, mode="nearest")
    exact = (conv2d(enlarged, weight.double(), padding=1) + bias[:, :, None, None]).relu()
    packed = compiled.packed_weights(weight)
    found = compiled.convolve(x, packed, bias, None, doubled=True, relu=True)
    assert found.shape == exact.shape
    assert (found.double() - exact).abs().max() < (1e-4 if dtype == torch.float32 else 0.05)
    assert (found == 0).any()
    x[0, 0, 0, 0] = float("nan")
    assert compiled.convolve(x, packed, bias, None, relu=True).isnan().any()


def test_the_fused_normalisation_is_at_least_as_exact_as_pytorchs(
    kernels: tuple[CpuKernels, torch.dtype],
) -> None:
    """For one input and for two that are stacked, float32 to 1e-5 and bfloat16 as exact as PyTorch's."""
    compiled, dtype = kernels
    x, skip = _last(_random(2, 48, 9, 31) * 3 + 1, dtype), _last(_random(2, 16, 9, 31, seed=4) * 2, dtype)
    for stacked, second in ((x, None), (torch.cat([x, skip], dim=1), skip)):
        channels = stacked.shape[1]
        weight, bias = _random(channels, seed=1), _random(channels, seed=2)
        exact = silu(group_norm(stacked.double(), 8, weight.double(), bias.double(), 1e-6))
        plain = silu(group_norm(stacked, 8, weight.to(dtype), bias.to(dtype), 1e-6))
        found = compiled.normalise(x, second, weight, bias, groups=8, epsilon=1e-6)
        assert found.shape == exact.shape
        allowed = 1e-5 if dtype == torch.float32 else (plain.double() - exact).abs().max()
        assert (found.double() - exact).abs().max() <= allowed


def test_the_fused_activation_handles_extreme_inputs(kernels: tuple[CpuKernels, torch.dtype]) -> None:
    """silu(x) is 0 far below zero and x far above it, and non-finite values stay non-finite."""
    compiled, dtype = kernels
    x = _last(torch.tensor([-1e4, 1e4]).repeat(8).reshape(1, 16, 1, 1).expand(1, 16, 4, 4), dtype)
    wide = compiled.normalise(x, None, torch.full((16,), 200.0), torch.zeros(16), groups=1, epsilon=1e-6)
    assert torch.allclose(wide[0, :2, 0, 0].float(), torch.tensor([0.0, 200.0]), atol=1e-3)
    x[0, 0, 0, 0] = float("nan")
    assert compiled.normalise(x, None, torch.ones(16), torch.zeros(16), groups=1, epsilon=1e-6).isnan().any()


def test_tensors_that_do_not_fit_are_refused_before_memory_is_read(
    kernels: tuple[CpuKernels, torch.dtype],
) -> None:
    """Wrong weights, residuals, skips and channel counts between sixteens raise ValueError."""
    compiled, dtype = kernels
    x, packed = _last(_random(1, 32, 4, 4), dtype), compiled.packed_weights(_random(16, 32, 3, 3))
    with pytest.raises(ValueError, match="packed weights"):
        compiled.convolve(x, packed, torch.zeros(1, 32), None)
    with pytest.raises(ValueError, match="cannot be added"):
        compiled.convolve(x, packed, torch.zeros(1, 16), x)
    with pytest.raises(ValueError, match="groups"):
        compiled.normalise(x[:, :24], None, torch.ones(24), torch.zeros(24), groups=2, epsilon=1e-6)
    with pytest.raises(ValueError, match="cannot be stacked"):
        compiled.normalise(x, x[:, :, :2], torch.ones(64), torch.zeros(64), groups=2, epsilon=1e-6)


@pytest.mark.parametrize("outputs", [32, 64, 24])
@pytest.mark.parametrize("side", [10, 18])
def test_a_fused_block_computes_the_same_as_diffusers_block(
    kernels: tuple[CpuKernels, torch.dtype], outputs: int, side: int
) -> None:
    """With and without a skip and a shortcut convolution, on the kernel and below its smallest resolution."""
    compiled, dtype = kernels
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=32, out_channels=outputs, temb_channels=24, groups=8).eval()
    x, temb = _random(2, 32, side, side), _random(2, 24, seed=1)
    with torch.inference_mode():
        exact = block(x, temb)
        fused = FusedResidualBlock(copy.deepcopy(block), compiled).to(dtype)
        whole = fused(_last(x, dtype), silu(temb).to(dtype))
        split = fused(_last(x[:, :16], dtype), silu(temb).to(dtype), _last(x[:, 16:], dtype))
    for found in (whole, split):
        error = (found.float() - exact).std()
        assert error < (1e-5 if dtype == torch.float32 else 0.01) * exact.std()


def _attending_unet(channels: tuple[int, ...]) -> Unet:
    """Return a U-Net as the published one is built, with attention at the lower resolution."""
    return Unet(
        UNet2DModel(
            sample_size=64,
            block_out_channels=channels,
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            downsample_padding=0,
        )
    )


@pytest.mark.parametrize(
    "unet",
    [
        build_unet((32, 64), 64).eval(),
        build_unet((16, 32), 64).eval(),
        _attending_unet((8, 24)).eval(),
        build_unet((16, 32), 64, patch=2).eval(),
    ],
    ids=["wide", "narrow", "attending", "patches"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accelerated_networks_compute_the_same(unet: Unet, dtype: torch.dtype) -> None:
    """Estimates and logits change by less than 1e-4 in float32 and by less than 0.05 in bfloat16."""
    compiled = _kernels(cpu_target() if dtype == torch.float32 else TARGETS[-1], dtype)
    torch.manual_seed(0)
    classifier = ResNet(ResNetConfig(depth=18, width=16)).eval()
    x, timesteps = _random(2, 3, 64, 64).clamp(-1, 1), (0, 10, 400)
    with torch.inference_mode():
        config = DnfConfig(timesteps=timesteps)
        noise, logit = diffusion_noise_feature(unet, x, config), classifier(x)
        estimator, network, description = accelerate(
            copy.deepcopy(unet), copy.deepcopy(classifier), CPU, dtype
        )
        assert estimator is not None
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        assert (diffusion_noise_feature(estimator, x, config) - noise).abs().max() < tolerance
        single = estimator(x, torch.full((2,), 10)).float()
        assert (single - noise[:, 3:6]).abs().max() < tolerance
        assert (network(x.to(dtype)).float() - logit).abs().max() < tolerance
    assert description == f"kernels for {compiled.target}"
    assert isinstance(estimator, FusedUnet)
    assert any(isinstance(module, FusedBasicBlock) for module in network.modules())


def test_the_default_bundle_gives_the_same_answers_on_kernels_and_on_pytorchs_layers() -> None:
    """The logits of all views agree within 1e-3 in float32."""
    _kernels(cpu_target(), torch.float32)
    ours, plain = (Detector.load(device="cpu", dtype="float32", plain=plain) for plain in (False, True))
    assert (ours.acceleration.partition(" ")[0], plain.acceleration) == ("kernels", "PyTorch's layers")
    prepared = [ours.prepare(decode(sample_files(1)[0]).pixels)]
    found, expected = ([view.logit for view in each.examine(prepared)[0].views] for each in (ours, plain))
    assert found == pytest.approx(expected, abs=1e-3)
    assert found != expected


def test_the_kernels_follow_the_instructions_that_pytorch_is_told_to_use() -> None:
    """`ATEN_CPU_CAPABILITY` chooses for both."""
    _kernels("AVX2", torch.float32)
    program = "from detector.acceleration.kernels import cpu_target; print(cpu_target())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout.strip() == "AVX2"


def test_kernels_for_other_instructions_do_not_exist() -> None:
    """The reason names those that there are kernels for."""
    with pytest.raises(KernelsUnavailableError, match="AVX512-BF16"):
        cpu_kernels(torch.bfloat16, "AVX2")
    with pytest.raises(
        KernelsUnavailableError, match="there are kernels for AVX2 and AVX512, not for DEFAULT"
    ):
        cpu_kernels(torch.float32, "DEFAULT")


def test_without_a_compiler_pytorchs_layers_are_used_and_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without g++ in the path and without a cached library, the description says why it is slower."""
    _kernels(cpu_target(), torch.float32)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_kernels.cache_clear()
    try:
        classifier = ResNet(ResNetConfig(depth=18, width=16))
        found = accelerate(None, classifier, CPU, torch.float32)
    finally:
        cpu_kernels.cache_clear()
    assert found[0] is None
    assert "no C++ compiler (g++)" in found[2]
    assert not any(isinstance(module, Convolution) for module in found[1].modules())
    assert found[1](torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_batch_normalisations_compute_the_same(depth: int, dtype: torch.dtype) -> None:
    """With statistics like those of a trained network: within 1e-4 in float32, within 0.05 in bfloat16."""
    torch.manual_seed(0)
    classifier = ResNet(ResNetConfig(depth=depth, width=8, stem_pool=False)).eval()  # type: ignore[arg-type]
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    x = _random(2, 3, 48, 48)
    with torch.inference_mode():
        exact = classifier(x)
        found = accelerate(None, copy.deepcopy(classifier), CPU, dtype)[1]
        assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())
        tolerance = (1e-4 if dtype == torch.float32 else 0.05) * max(1.0, float(exact.abs().max()))
        assert (found(x.to(dtype)).float() - exact).abs().max() < tolerance


class _TinyEstimator(nn.Module):
    """One convolution, and the timesteps added."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.convolution(x) + timesteps[:, None, None, None]  # type: ignore[no-any-return]


def test_a_failed_compilation_leaves_the_layers_and_one_log_event(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a compiler the estimates are those of the layers, and later batches do not try again."""
    for name in ("PATH", "CXX", "CC"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network, x, timesteps = _TinyEstimator().eval(), _random(2, 3, 8, 8), torch.tensor([0, 5])
    with torch.inference_mode(), capture_logs() as events:
        expected = network(x, timesteps)
        estimator, _, description = accelerate(
            cast("Unet", network), nn.Identity(), CPU, torch.float32, compiled=True
        )
        assert isinstance(estimator, CompiledNetwork)
        assert all(torch.equal(estimator(x, timesteps), expected) for _ in range(2))
    assert description == "compiled U-Net"
    assert [(event["event"], event["log_level"]) for event in events] == [("compilation_failed", "warning")]


def test_a_batch_is_padded_to_the_next_captured_size() -> None:
    """Three pictures are padded to four, four are not padded, and more than the largest size has no graph."""
    assert [padded_size(count, (1, 2, 4)) for count in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, None]
    batch = torch.ones(3, 2)
    assert padded(batch, 4).tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert padded(batch, 3) is batch


def test_the_batch_fills_at_most_four_fifths_of_the_free_memory() -> None:
    """With 10 GB free, 8 pictures of 1 GB fit and 16 do not; if no size fits, the smallest is returned."""
    assert fitting_batch(10_000, 1_000) == 8
    assert fitting_batch(9_999, 1_000) == 4
    assert fitting_batch(10, 1_000) == 1
