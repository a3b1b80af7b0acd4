"""Accelerated layers compute the same as PyTorch's, and are not used where they cannot run."""

import copy

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.functional import conv2d, group_norm, silu

from detector.acceleration.cpu_layers import FusedResidualBlock, WinogradConvolution
from detector.acceleration.cuda_graphs import fitting_batch, padded, padded_size
from detector.acceleration.inference import accelerate
from detector.acceleration.kernels import CpuKernels, KernelsUnavailableError, cpu_kernels, packed_weights
from detector.acceleration.precision import processor_features
from detector.bundle.manifest import ResNetConfig
from detector.networks.resnet import ResNet
from detector.training.unet import build_unet


@pytest.fixture(scope="module")
def compiled() -> CpuKernels:
    """Provide the kernels; skip on a machine without a compiler or the instructions."""
    try:
        return cpu_kernels()
    except KernelsUnavailableError as reason:
        pytest.skip(str(reason))


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("channels", "outputs", "height", "width"),
    [(16, 16, 8, 8), (32, 96, 7, 9), (64, 64, 5, 2), (272, 32, 6, 6)],
)
def test_the_winograd_convolution_is_about_as_exact_as_the_plain_one(
    compiled: CpuKernels, channels: int, outputs: int, height: int, width: int
) -> None:
    """Its error against float64 is at most 1.6 times that of PyTorch's bfloat16, for even and odd sizes.

    It rounds the transformed input once more than the plain convolution.
    """
    x = _last(_random(2, channels, height, width))
    weight = _random(outputs, channels, 3, 3, seed=1) / (9 * channels) ** 0.5
    bias = _random(2, outputs, seed=2)
    residual = _last(_random(2, outputs, height, width, seed=3))
    exact = conv2d(x.double(), weight.double(), padding=1) + bias[:, :, None, None] + residual
    plain = conv2d(x, weight.to(torch.bfloat16), padding=1) + bias[:, :, None, None].bfloat16() + residual
    found = compiled.convolve(x, packed_weights(weight), bias, residual)
    assert found.shape == exact.shape
    error, plain_error = ((y.double() - exact).std() for y in (found, plain))
    assert error < 1.6 * plain_error
    assert error < 0.01 * exact.std()


def test_the_fused_normalisation_is_at_least_as_exact_as_pytorchs(compiled: CpuKernels) -> None:
    """Its largest error against float64 is at most that of group_norm and silu in bfloat16."""
    x = _last(_random(2, 48, 9, 31) * 3 + 1)
    weight, bias = _random(48, seed=1), _random(48, seed=2)
    exact = silu(group_norm(x.double(), 6, weight.double(), bias.double(), 1e-6))
    plain = silu(group_norm(x, 6, weight.bfloat16(), bias.bfloat16(), 1e-6))
    found = compiled.normalise(x, weight, bias, 6, 1e-6)
    assert (found.double() - exact).abs().max() <= (plain.double() - exact).abs().max()


def test_the_fused_activation_handles_extreme_inputs(compiled: CpuKernels) -> None:
    """silu(x) is 0 far below zero and x far above it, and non-finite values stay non-finite."""
    x = _last(torch.tensor([-1e4, 1e4]).repeat(8).reshape(1, 16, 1, 1).expand(1, 16, 4, 4))
    wide = compiled.normalise(x, torch.full((16,), 200.0), torch.zeros(16), 1, 1e-6)
    assert torch.allclose(wide[0, :2, 0, 0].float(), torch.tensor([0.0, 200.0]), atol=1e-3)
    x[0, 0, 0, 0] = float("nan")
    assert compiled.normalise(x, torch.ones(16), torch.zeros(16), 1, 1e-6).isnan().any()


def test_tensors_that_do_not_fit_are_refused_before_memory_is_read(compiled: CpuKernels) -> None:
    """Wrong weights, a wrong residual and a channel count between sixteens raise ValueError."""
    x, packed = _last(_random(1, 32, 4, 4)), packed_weights(_random(16, 32, 3, 3))
    with pytest.raises(ValueError, match="packed weights"):
        compiled.convolve(x, packed, torch.zeros(1, 32), None)
    with pytest.raises(ValueError, match="cannot be added"):
        compiled.convolve(x, packed, torch.zeros(1, 16), x)
    with pytest.raises(ValueError, match="groups"):
        compiled.normalise(_last(_random(1, 24, 4, 4)), torch.ones(24), torch.zeros(24), 2, 1e-6)


@pytest.mark.parametrize("outputs", [32, 64])
def test_a_fused_block_computes_the_same_as_diffusers_block(compiled: CpuKernels, outputs: int) -> None:
    """With and without a shortcut convolution, outputs are within bfloat16 rounding of the float32 block."""
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=32, out_channels=outputs, temb_channels=24, groups=8).eval()
    x, temb = _random(2, 32, 10, 10), _random(2, 24, seed=1)
    with torch.inference_mode():
        exact = block(x, temb)
        fused = FusedResidualBlock(copy.deepcopy(block), compiled).to(torch.bfloat16)
        found = fused(_last(x), temb.to(torch.bfloat16))
    assert (found.float() - exact).std() < 0.01 * exact.std()


def test_bfloat16_on_a_cpu_stays_close_to_float32(compiled: CpuKernels) -> None:
    """A U-Net's estimate and a classifier's logit change by less than 0.05, the stated tolerance."""
    del compiled
    torch.manual_seed(0)
    unet, classifier = build_unet((32, 64), 64).eval(), ResNet(ResNetConfig(depth=18, width=16)).eval()
    x, t = _random(2, 3, 64, 64).clamp(-1, 1), torch.zeros(2, dtype=torch.long)
    with torch.inference_mode():
        noise, logit = unet(x, t), classifier(x)
        fast_unet, fast_classifier, description = accelerate(
            copy.deepcopy(unet), copy.deepcopy(classifier), torch.device("cpu"), torch.bfloat16
        )
        assert fast_unet is not None
        assert (fast_unet(x, t).float() - noise).abs().max() < 0.05
        assert (fast_classifier(x.bfloat16()).float() - logit).abs().max() < 0.05
    assert description.startswith("fused kernels for")
    kinds = [type(module) for network in (fast_unet, fast_classifier) for module in network.modules()]
    assert FusedResidualBlock in kinds
    assert WinogradConvolution in kinds


def test_float32_is_the_reference() -> None:
    """In float32 no layer is replaced and no output changes."""
    torch.manual_seed(0)
    unet, classifier = build_unet((16, 32), 64).eval(), ResNet(ResNetConfig(depth=18, width=8)).eval()
    x, t = _random(1, 3, 64, 64), torch.zeros(1, dtype=torch.long)
    kinds = [type(module) for module in (*unet.modules(), *classifier.modules())]
    with torch.inference_mode():
        before = unet(x, t), classifier(x)
        estimator, network, description = accelerate(unet, classifier, torch.device("cpu"), torch.float32)
        assert estimator is not None
        assert torch.allclose(estimator(x, t), before[0], atol=1e-5)
        assert torch.allclose(network(x), before[1], atol=1e-5)
    assert [type(module) for module in (*estimator.modules(), *network.modules())] == kinds
    assert description == "PyTorch's layers"


def test_without_a_compiler_pytorchs_layers_are_used_and_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without g++ in the path, bfloat16 works, and the description says why it is slower."""
    if "avx512_bf16" not in processor_features():
        pytest.skip("this CPU has no AVX512-BF16 instructions")
    monkeypatch.setenv("PATH", "")
    cpu_kernels.cache_clear()
    classifier = ResNet(ResNetConfig(depth=18, width=16))
    found = accelerate(None, classifier, torch.device("cpu"), torch.bfloat16)
    assert found[0] is None
    assert "no C++ compiler (g++)" in found[2]
    assert not any(isinstance(module, WinogradConvolution) for module in found[1].modules())
    assert found[1](torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)).isfinite().all()


@pytest.mark.parametrize("depth", [18, 50])
def test_folded_batch_normalisations_compute_the_same(depth: int) -> None:
    """With statistics like those of a trained network, bfloat16 logits stay within 0.05 of float32."""
    torch.manual_seed(0)
    classifier = ResNet(ResNetConfig(depth=depth, width=8, stem_pool=False)).eval()  # type: ignore[arg-type]
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    x = _random(2, 3, 48, 48)
    with torch.inference_mode():
        exact = classifier(x)
        found = accelerate(None, copy.deepcopy(classifier), torch.device("cpu"), torch.bfloat16)[1]
        assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())
        assert (found(x.bfloat16()).float() - exact).abs().max() < 0.05 * max(1.0, float(exact.abs().max()))


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
