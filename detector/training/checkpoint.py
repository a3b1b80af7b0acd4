"""Where a training stands on disk: tensors and plain numbers, replaced as a whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

CHECKPOINT_FILE = "training.pt"


class Stateful(Protocol):
    """A network or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it needs to go on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Go on from there."""


def save_checkpoint(folder: Path, parts: Mapping[str, Stateful], record: Mapping[str, Any]) -> None:
    """Write the parts' states and the `record` of plain numbers; a crash leaves the former checkpoint."""
    partial = folder / f"{CHECKPOINT_FILE}.part"
    torch.save({"record": dict(record), **{name: part.state_dict() for name, part in parts.items()}}, partial)
    partial.replace(folder / CHECKPOINT_FILE)


def load_checkpoint(folder: Path, parts: Mapping[str, Stateful]) -> dict[str, Any] | None:
    """Restore the parts and return the record; None where no training was begun.

    Read with `weights_only=True`: a checkpoint cannot run code.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return dict(content["record"])
