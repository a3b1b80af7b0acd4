"""Several ResNets side by side, each on its own channels."""

import torch
from torch import Tensor, nn

from detector.bundle.manifest import ResNetConfig
from detector.networks.resnet import ResNet


class Towers(nn.Module):
    """ResNets on consecutive channels, and the weights of their logits: (B, C, H, W) to logits (B, 1)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self._channels = list(config.towers)
        self.towers = nn.ModuleList(
            ResNet(config.model_copy(update={"in_channels": channels, "towers": ()}))
            for channels in self._channels
        )
        self.mix = nn.Linear(len(self._channels), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 1) for a batch (B, in_channels, H, W)."""
        parts = x.split(self._channels, dim=1)
        logits = torch.cat([tower(part) for tower, part in zip(self.towers, parts, strict=True)], dim=1)
        return self.mix(logits)  # type: ignore[no-any-return]


def build_classifier(config: ResNetConfig) -> ResNet | Towers:
    """Return the untrained network that a bundle describes."""
    return Towers(config) if config.towers else ResNet(config)
