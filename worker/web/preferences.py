"""What each person may set: keys, whether there are any, claiming at once, a reminder of breaks."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


@dataclass(frozen=True)
class Action:
    """Something that a key does."""

    name: str
    label: str
    default_key: str


ACTIONS = (
    Action("claim", "Claim the next item", "c"),
    Action("reveal", "Reveal or blur the picture", "v"),
    Action("outline", "Outline the strongest view", "o"),
    Action("feature", "Noise feature in its place", "f"),
    Action("heat", "Heat map of the views", "h"),
    Action("zoom", "Native pixels", "z"),
    Action("zoom_in", "Zoom in", "+"),
    Action("zoom_out", "Zoom out", "-"),
    Action("generated", "Decide: generated", "g"),
    Action("real", "Decide: real", "r"),
    Action("edited", "Decide: edited", "e"),
    Action("cannot_tell", "Decide: cannot tell", "t"),
    Action("opinion", "Basis: opinion", "1"),
    Action("source_found", "Basis: source found", "2"),
    Action("uploader_said", "Basis: uploader said", "3"),
    Action("credentials", "Basis: credentials", "4"),
    Action("note", "Write a note", "n"),
    Action("skip", "Skip; somebody else gets it", "s"),
    Action("escalate", "Escalate to a senior", "x"),
    Action("release", "Pause; put the item back", "p"),
    Action("undo", "Undo the last decision", "u"),
    Action("help", "This list", "?"),
)
_DEFAULTS = {action.name: action.default_key for action in ACTIONS}

Key = Annotated[str, Field(min_length=1, max_length=1)]


class Preferences(BaseModel):
    """The preferences of one person; keys are single characters, each for one action."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    keys_on: bool = True
    #: Whether a decision claims the next item at once.
    auto_claim: bool = True
    #: Minutes of work after which the page suggests a break; 0: never.
    break_minutes: int = Field(default=50, ge=0, le=480)
    keys: dict[str, Key] = Field(default_factory=dict)

    @field_validator("keys")
    @classmethod
    def _one_action_each(cls, keys: dict[str, str]) -> dict[str, str]:
        chosen = {name: key.lower() for name, key in keys.items() if name in _DEFAULTS}
        taken: dict[str, str] = {}
        for name, key in {**_DEFAULTS, **chosen}.items():
            if key.isspace() or not key.isprintable():
                raise ValueError(f"the key of {name} must be a visible character")
            if other := taken.get(key):
                raise ValueError(f"{key} stands for both {other} and {name}")
            taken[key] = name
        return {name: key for name, key in chosen.items() if key != _DEFAULTS[name]}

    def key(self, action: str) -> str:
        """Return the key of an action, as it is shown."""
        return self.keys.get(action, _DEFAULTS[action])

    def by_key(self) -> dict[str, str]:
        """Return each key's action."""
        return {self.key(action.name): action.name for action in ACTIONS}


def stored_preferences(stored: Any) -> Preferences:
    """Return what the database keeps; the defaults where this version does not understand it."""
    try:
        return Preferences.model_validate(stored)
    except ValidationError:
        return Preferences()
