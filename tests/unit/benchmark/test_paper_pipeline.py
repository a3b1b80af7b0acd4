"""The published pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.benchmark.paper_pipeline import PaperPipeline, weight_by_rule
from detector.benchmark.speed import (
    sample_files,
)
from detector.bundle.files import BundleError, open_bundle
from detector.bundle.manifest import DnfConfig
from detector.images.decode import decode
from detector.networks.dnf import diffusion_noise_feature, quantised
from detector.networks.unet import load_unet
from tests.golden import weights_by_rule


def test_the_published_pipeline_saves_the_quantised_feature(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its files equal `quantised` of the float32 feature, byte for byte."""
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
    """A classifier of six channels cannot read the published files: it is rejected with a reason."""
    bundle = open_bundle(tiny_bundle)
    classifier = bundle.manifest.classifier.model_copy(update={"in_channels": 6})
    wide = type(bundle)(bundle.folder, bundle.manifest.model_copy(update={"classifier": classifier}), "")
    with pytest.raises(BundleError, match="single noise estimate"):
        PaperPipeline(wide, tmp_path)


def test_the_full_size_weights_follow_the_golden_rule() -> None:
    """Kernels, scales, biases and running statistics equal those of the golden numbers."""
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
