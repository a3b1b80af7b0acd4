"""Pictures for the tests of the evaluation."""

import numpy as np
import pytest
from PIL import Image

from detector.corpus.corpus import Sample


@pytest.fixture(scope="package")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Twelve pictures: two sources of photographs and one generator, which made half of them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    made = []
    for index in range(12):
        family = ("a", "gan", "b", "gan")[index % 4]
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(path)
        made.append(Sample(path, family == "gan", family, str(index)))
    return made
