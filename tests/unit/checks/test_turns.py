"""Small pictures are prepared one after the other, large ones side by side."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from detector.images.memory import MemoryBudgetError
from tests.conftest import PATIENCE
from worker.checks.turns import SMALL_PIXELS, Turns


def test_no_two_small_pictures_are_prepared_at_one_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def prepare(_: int) -> None:
        nonlocal inside, most
        with turns.turn(SMALL_PIXELS, timeout_seconds=PATIENCE):
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.001)  # lets the other threads run
            inside -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(prepare, range(40)))
    assert most == 1


def test_large_pictures_wait_neither_for_small_ones_nor_for_each_other() -> None:
    turns, together = Turns(), threading.Barrier(2)

    def prepare(_: int) -> None:
        with turns.turn(SMALL_PIXELS + 1, timeout_seconds=0):
            together.wait(PATIENCE)

    with turns.turn(1, timeout_seconds=0), ThreadPoolExecutor(2) as threads:
        list(threads.map(prepare, range(2)))


def test_a_small_picture_whose_turn_does_not_come_in_time_is_retried_like_one_without_memory() -> None:
    turns = Turns()
    with turns.turn(1, timeout_seconds=0), pytest.raises(MemoryBudgetError), turns.turn(1, timeout_seconds=0):
        pass


def test_the_turn_of_a_picture_that_cannot_be_decoded_ends() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="damaged"), turns.turn(1, timeout_seconds=0):
        raise ValueError("damaged")
    with turns.turn(1, timeout_seconds=0):
        pass
