"""The fleet's rate, which the backlog is divided by."""

from worker.operations.exporter.throughput import WINDOW_SECONDS, Throughput


def test_the_rate_is_what_a_fleet_does_while_it_is_busy_and_what_it_could_do_otherwise() -> None:
    """Two workers at five a second while checks wait; expected three each before, and when nothing waits."""
    fleet = Throughput()
    assert fleet.measured is None
    assert fleet.attainable(3) == 3
    fleet.note(0, published=100, waiting=50, alive=2)
    assert fleet.measured is None
    assert fleet.attainable(3) == 6
    for second in range(10, 200, 10):
        fleet.note(second, published=100 + 5 * second, waiting=50, alive=2)
        assert fleet.measured == 5
        assert fleet.attainable(3) == 5
    fleet.note(200, published=1095, waiting=0, alive=2)
    assert fleet.measured is not None
    assert fleet.measured < 5
    assert fleet.attainable(3) == 6
    # A third worker: what two did says nothing of three.
    fleet.note(210, published=1095, waiting=9, alive=3)
    assert fleet.measured is None
    assert fleet.attainable(3) == 9
    fleet.note(220, published=1095, waiting=9, alive=0)
    assert fleet.attainable(3) == 3


def test_the_rate_forgets_what_is_older_than_its_window() -> None:
    """An hour of nothing before the last minute does not count."""
    fleet = Throughput()
    for second in range(0, 3600, 15):
        fleet.note(second, published=0, waiting=1, alive=1)
    for second in range(3600, 3600 + 2 * int(WINDOW_SECONDS), 15):
        fleet.note(second, published=10 * (second - 3600), waiting=1, alive=1)
    assert fleet.measured == 10
