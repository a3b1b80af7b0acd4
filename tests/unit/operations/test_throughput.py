"""The throughput of the fleet, by which the backlog is divided."""

from worker.operations.exporter import WINDOW_SECONDS, Throughput


def test_throughput_is_measured_while_the_fleet_is_busy_and_expected_otherwise() -> None:
    """Two workers do five checks per second while checks wait; otherwise three each are expected."""
    fleet = Throughput()
    assert fleet.measured is None
    assert fleet.attainable(3) == 3
    fleet.record(0, published=100, waiting=50, alive=2)
    assert fleet.measured is None
    assert fleet.attainable(3) == 6
    for second in range(10, 200, 10):
        fleet.record(second, published=100 + 5 * second, waiting=50, alive=2)
        assert fleet.measured == 5
        assert fleet.attainable(3) == 5
    fleet.record(200, published=1095, waiting=0, alive=2)
    assert fleet.measured is not None
    assert fleet.measured < 5
    assert fleet.attainable(3) == 6
    # The rate of two workers says nothing about three.
    fleet.record(210, published=1095, waiting=9, alive=3)
    assert fleet.measured is None
    assert fleet.attainable(3) == 9
    fleet.record(220, published=1095, waiting=9, alive=0)
    assert fleet.attainable(3) == 3


def test_throughput_ignores_moments_older_than_its_window() -> None:
    """An idle hour before the last minute does not count."""
    fleet = Throughput()
    for second in range(0, 3600, 15):
        fleet.record(second, published=0, waiting=1, alive=1)
    for second in range(3600, 3600 + 2 * int(WINDOW_SECONDS), 15):
        fleet.record(second, published=10 * (second - 3600), waiting=1, alive=1)
    assert fleet.measured == 10
