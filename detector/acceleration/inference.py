"""Networks prepared for fast inference on one device."""

from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detector.acceleration.cpu_layers import fuse_classifier, fused_unet
from detector.acceleration.cuda_graphs import GRAPH_SIZES, CapturedGraphs, CompiledNetwork
from detector.acceleration.kernels import KernelsUnavailableError, cpu_kernels
from detector.networks.classifiers import Ensemble
from detector.networks.cooccurrences import CooccurrenceClassifier
from detector.networks.resnet import BasicBlock, Bottleneck, ResNet

if TYPE_CHECKING:
    from detector.networks.dnf import NoiseEstimator
    from detector.networks.unet import Unet

Classifier = TypeVar("Classifier", bound=nn.Module)


def accelerate(
    unet: "Unet | None",
    classifier: Classifier,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    plain: bool = False,
) -> tuple["NoiseEstimator | None", Classifier, str]:
    """Move float32 networks to a device in `dtype`, with the memory layout and layers that are fast there.

    Returns both networks, for inference only, and a description of what they run on. With `compiled` PyTorch
    compiles the U-Net on its first batches, and uses its layers when that fails; with `plain` the networks
    keep PyTorch's layers, as a reference.
    """
    # Channels last is faster on CPUs (measured) and on tensor cores (documented), and no faster on Metal.
    layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
    description, estimator = "PyTorch's layers", cast("NoiseEstimator | None", unet)
    networks: list[nn.Module] = [classifier] if unet is None else [unet, classifier]
    if not plain:
        _fold_batch_norms(classifier)
    for network in networks:
        network.to(memory_format=layout)  # type: ignore[call-overload]
    if device.type == "cpu" and not compiled and not plain:
        estimator, description = _on_kernels(unet, classifier, dtype)
    for network in networks:
        _convert(network.eval(), device, dtype)
    sizes: tuple[int, ...] = GRAPH_SIZES
    if unet is not None and compiled:
        estimator, sizes, description = CompiledNetwork(unet), GRAPH_SIZES[1:], "compiled U-Net"
    if estimator is not None and device.type == "cuda" and dtype == torch.bfloat16:
        description = f"{description}, CUDA graphs" if compiled else "CUDA graphs"
        return CapturedGraphs(estimator, sizes), classifier, description
    return estimator, classifier, description


def _convert(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a network to a device, in `dtype` but for what adds up few numbers or counts grey levels."""
    if isinstance(network, Ensemble):
        network.to(device)
        for branch in network.branches:
            _convert(branch, device, dtype)
    elif isinstance(network, CooccurrenceClassifier):
        network.to(device)
    else:
        network.to(device=device, dtype=dtype)


def _on_kernels(
    unet: "Unet | None", classifier: nn.Module, dtype: torch.dtype
) -> tuple["NoiseEstimator | None", str]:
    """Put float32 networks on the CPU kernels for `dtype`, the classifier in place; return the U-Net and how.

    Before a conversion to bfloat16, so that packed weights are rounded only once.
    """
    try:
        kernels = cpu_kernels(dtype)
    except KernelsUnavailableError as reason:
        return unet, f"PyTorch's layers: {reason}"
    fuse_classifier(classifier, kernels)
    return unet and fused_unet(unet, kernels), f"kernels for {kernels.target}"


def _fold_batch_norms(classifier: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it, in float32."""
    pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
    for module in classifier.eval().modules():
        if isinstance(module, (ResNet, BasicBlock, Bottleneck)):
            for convolution, norm in pairs:
                if hasattr(module, convolution):
                    folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                    setattr(module, convolution, folded)
                    setattr(module, norm, nn.Identity())
        elif isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            module[0] = fuse_conv_bn_eval(cast("nn.Conv2d", module[0]), module[1])
            module[1] = nn.Identity()
