"""A classifier: a ResNet with torchvision's parameter names.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; the bottleneck has its stride in the
3x3 convolution (version 1.5), like the DNF authors' classifier.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detector.bundle.manifest import ResNetConfig


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C_in, H, W) to (B, planes, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inplanes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + _identity(self.downsample, x))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 and a shortcut: (B, C, H, W) to (B, 4 planes, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = _shortcut(inplanes, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + _identity(self.downsample, x))


def _shortcut(inplanes: int, outplanes: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inplanes == outplanes:
        return None
    return nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes))


def _identity(downsample: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    return x if downsample is None else downsample(x)


class ResNet(nn.Module):
    """A ResNet with one output: (B, in_channels, H, W) float to logits (B, 1), positive for *generated*."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        block: type[BasicBlock | Bottleneck] = BasicBlock if config.depth == 18 else Bottleneck  # noqa: PLR2004
        blocks = (2, 2, 2, 2) if config.depth == 18 else (3, 4, 6, 3)  # noqa: PLR2004
        width = config.width
        self.conv1 = nn.Conv2d(config.in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if config.stem_pool else nn.Identity()
        inplanes = width
        stages: list[nn.Module] = []
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            layers: list[nn.Module] = []
            for index in range(count):
                layers.append(block(inplanes, planes, 2 if index == 0 and stage > 0 else 1))
                inplanes = planes * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(inplanes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 1) for a batch (B, in_channels, H, W)."""
        return self.fc(self.embedding(x))  # type: ignore[no-any-return]

    def embedding(self, x: Tensor) -> Tensor:
        """Return what the logit is a linear function of, (B, D)."""
        x = x.to(self.fc.weight.dtype)
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))
