"""The networks behind the golden numbers: their weights follow a rule, so none are stored.

`tests/data/*.npz` hold what the DNF authors' own networks computed in float32 with these weights.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.benchmark.paper_pipeline import weight_by_rule

DATA = Path(__file__).parent / "data"


def golden_index() -> dict[str, Any]:
    """Return the configurations, seeds, and names and shapes of all parameters."""
    return json.loads((DATA / "golden.json").read_text())


def golden_arrays(network: str) -> dict[str, np.ndarray]:
    """Return the pictures and the expected numbers of `small` or `lsun_bedroom`."""
    with np.load(DATA / f"{network}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def golden_pictures(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the uint8 pictures (H, W, 3) in their order."""
    names = sorted(name for name in arrays if name.startswith("image_"))
    return [arrays[name] for name in names]


def weights_by_rule(shapes: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """Make a state dict: each parameter is drawn from a seed that its name determines."""
    state: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        kind = torch.long if name.endswith("num_batches_tracked") else torch.float32
        state[name] = weight_by_rule(name, torch.empty(shape, dtype=kind), seed)
    return state


def write_checkpoints(network: str, folder: Path) -> tuple[Path, Path, Path]:
    """Write the DDIM checkpoint, its configuration and the classifier's checkpoint as their authors do."""
    index = golden_index()
    entry = index[network]
    paths = folder / "unet.ckpt", folder / "config.json", folder / "classifier.pth"
    torch.save(weights_by_rule(entry["unet_parameters"], entry["seed"]), paths[0])
    paths[1].write_text(json.dumps(entry["config"]))
    classifier = weights_by_rule(index["resnet50_parameters"], entry["seed"])
    torch.save({"model": classifier, "total_steps": 1}, paths[2])
    return paths
