"""No picture takes more memory than is reserved for it, and all together take no more than the budget."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from detector.images.decode import ImageLimits, decode, open_picture
from detector.images.memory import MemoryBudget, MemoryBudgetError
from detector.images.views import crops

PICTURES = Path(__file__).parents[2] / "data" / "pictures"
MIB = 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_every_kind_of_picture_needs_what_is_reserved_for_it_and_never_counts_as_damaged_without() -> None:
    """Each is decoded alone in a process of its own, with all and then with too little memory."""
    # Large blocks are mappings of their own, so that none comes from what earlier pictures left.
    allocator = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(
        [sys.executable, "-m", "tests.unit.images.decoding_memory"],
        env={**os.environ, **allocator},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = [line.split("\t") for line in printed.splitlines()]
    assert len(rows) > 20
    for kind, taken, reserved, outcomes in rows:
        assert int(taken) <= int(reserved), kind
        # Not so much more that few fit into the budget: twice, and what is fixed.
        assert int(reserved) < 2 * int(taken) + 16 * MIB, kind
        assert set(outcomes.split(",")) <= {"memory", "pixels"}, kind
        assert outcomes.startswith("memory"), kind


@pytest.mark.parametrize(
    ("name", "mebibytes"), [("png_49_megapixels_1_bit.png", 210), ("png_33_by_1500000_1_bit.png", 250)]
)
def test_a_small_file_of_many_pixels_reserves_little(name: str, mebibytes: int) -> None:
    """A byte a pixel is decoded, three are its colours: 196 million, and a strip of them."""
    assert open_picture((PICTURES / name).read_bytes()).memory_bytes < mebibytes * MIB


def test_views_of_a_narrow_picture_are_cut_before_they_are_mirrored() -> None:
    """They are those of the whole picture mirrored first."""
    pixels = np.random.default_rng(0).integers(0, 256, (900, 33, 3), dtype=np.uint8)
    mirrored = np.pad(pixels, ((0, 0), (0, 64 - 33), (0, 0)), mode="symmetric")
    assert np.array_equal(crops(pixels, 64, 9), crops(mirrored, 64, 9))


def test_limits_hold_before_a_pixel_is_decoded() -> None:
    """The size is known from the header."""
    data = (PICTURES / "png_49_megapixels_1_bit.png").read_bytes()
    encoded = open_picture(data, ImageLimits(max_pixels=49_000_000))
    assert encoded.pixel_count == 49_000_000
    assert decode((PICTURES / "png_phys_short.png").read_bytes()).width == 128


@pytest.fixture
def reserve() -> Iterator[Callable[..., threading.Event]]:
    """Provide a function that reserves on a thread of its own; its event is set once that has happened."""
    release = threading.Event()
    threads: list[threading.Thread] = []

    def start(budget: MemoryBudget, needed: int, until: threading.Event = release) -> threading.Event:
        reserved = threading.Event()

        def hold() -> None:
            with budget.reserve(needed, timeout_seconds=30):
                reserved.set()
                until.wait(30)

        threads.append(threading.Thread(target=hold, daemon=True))
        threads[-1].start()
        return reserved

    yield start
    release.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_no_more_than_the_budget_is_in_use() -> None:
    """Sixty-four threads reserve all sizes; the sum never exceeds it."""
    budget = MemoryBudget(64 * MIB)
    in_use, most, lock = 0, 0, threading.Lock()

    def work(seed: int) -> None:
        nonlocal in_use, most
        for needed in np.random.default_rng(seed).integers(1, 48 * MIB, 20).tolist():
            with budget.reserve(needed, timeout_seconds=60):
                with lock:
                    in_use += needed
                    most = max(most, in_use)
                with lock:
                    in_use -= needed

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert in_use == 0
    assert 0 < most <= 64 * MIB


def test_small_pictures_do_not_wait_for_large_ones(reserve: Callable[..., threading.Event]) -> None:
    """However many large ones hold their part or wait for it."""
    budget = MemoryBudget(64 * MIB)
    assert reserve(budget, 48 * MIB).wait(30)
    for _ in range(4):
        reserve(budget, 48 * MIB)
    for _ in range(100):
        with budget.reserve(MIB, timeout_seconds=30):
            pass


def test_a_large_picture_is_not_overtaken_for_ever(
    reserve: Callable[..., threading.Event], wait_until: Callable[..., None]
) -> None:
    """One that needs the whole part comes before the smaller ones that arrived later."""
    budget = MemoryBudget(64 * MIB)
    first_done = threading.Event()
    assert reserve(budget, 10 * MIB, first_done).wait(30)
    largest = reserve(budget, 48 * MIB)
    wait_until(lambda: budget.waiting, "the largest waits")
    with pytest.raises(MemoryBudgetError), budget.reserve(10 * MIB, timeout_seconds=0.2):
        pass
    assert not largest.is_set()
    first_done.set()
    assert largest.wait(30)


def test_a_picture_beyond_the_budget_has_its_part_alone(reserve: Callable[..., threading.Event]) -> None:
    """It waits until the part is empty, and nothing joins it."""
    budget = MemoryBudget(64 * MIB)
    with ExitStack() as stack:
        stack.enter_context(budget.reserve(200 * MIB, timeout_seconds=1))
        with pytest.raises(MemoryBudgetError):
            stack.enter_context(budget.reserve(10 * MIB, timeout_seconds=0.1))
    assert reserve(budget, 48 * MIB).wait(30)
