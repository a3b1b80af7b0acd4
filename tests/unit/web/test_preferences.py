"""Preferences and rates."""

import pytest
from pydantic import ValidationError

from worker.web.preferences import ACTIONS, Preferences, stored_preferences
from worker.web.security import RateLimit


def test_every_action_has_a_key_of_its_own() -> None:
    """By default, and after one was exchanged for a free one."""
    assert len(Preferences().by_key()) == len(ACTIONS)
    changed = Preferences(keys={"generated": "J", "real": "r"})
    assert changed.by_key()["j"] == "generated"
    assert changed.keys == {"generated": "j"}
    swapped = Preferences(keys={"generated": "r", "real": "g"})
    assert (swapped.key("generated"), swapped.key("real")) == ("r", "g")


@pytest.mark.parametrize("keys", [{"generated": "r"}, {"note": ""}, {"note": "ab"}, {"note": " "}])
def test_a_key_is_one_visible_character_of_one_action(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Preferences(keys=keys)


def test_preferences_of_another_version_are_no_obstacle() -> None:
    """Unknown fields are ignored; what cannot be understood is replaced by the defaults."""
    assert stored_preferences({"later": 1, "keys_on": False}).keys_on is False
    assert stored_preferences({"break_minutes": "soon"}) == Preferences()


def test_a_rate_has_a_burst_of_a_minute_for_each_key_alone() -> None:
    """The next action is named to the fraction of a minute that it takes."""
    limit = RateLimit(60)
    assert all(limit.wait_seconds("a") == 0.0 for _ in range(60))
    assert 0.5 < limit.wait_seconds("a") <= 1.0
    assert limit.wait_seconds("b") == 0.0


def test_a_rate_forgets_whoever_came_longest_ago() -> None:
    limit = RateLimit(1, remembered=2)
    for key in "abc":
        limit.wait_seconds(key)
    assert limit.wait_seconds("c") > 0
    assert limit.wait_seconds("a") == 0.0
