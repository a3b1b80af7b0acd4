"""What a bundle says of itself: the contents of bundle.json."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from detector.bundle.calibration import PlattScaling, Thresholds

Feature = Literal["dnf", "dnf+npr", "dnf+rgb", "dnf+npr+rgb", "rgb", "npr"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
Variant = Literal["first", "last", "mean", "stack"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Frozen):
    """How pixels become the U-Net's input of `size` x `size` pixels.

    "squash" resizes the whole picture, ignoring its aspect ratio (bicubic, antialiased), as published;
    "crop" cuts `views` squares at the picture's own scale, evenly spaced in a grid, one in the middle.
    """

    mode: Literal["squash", "crop"] = "squash"
    size: int = Field(default=256, ge=32, le=1024, multiple_of=8)
    views: Literal[1, 4, 9, 16] = 1

    @model_validator(mode="after")
    def _one_squash(self) -> "Preprocessing":
        if self.mode == "squash" and self.views != 1:
            raise ValueError("a squashed picture has one view")
        return self


class DnfConfig(_Frozen):
    """How the feature is computed.

    `variant` names what is kept of the `steps` estimates along the inversion. With "first" the clean picture
    is given to the U-Net once for each of `timesteps`, and the estimates are stacked; the published feature
    is the one at t = 0. `quantise` reproduces the published pipeline, which clamps the feature to 0..1 and
    stores it as bytes between the two networks; it exists for parity.
    """

    variant: Variant = "first"
    timesteps: tuple[Annotated[int, Field(ge=0, le=999)], ...] = Field(default=(0,), min_length=1)
    steps: int = Field(default=20, ge=1, le=1000)
    quantise: bool = False

    @property
    def channels(self) -> int:
        """How many channels the feature has."""
        if self.variant == "first":
            return 3 * len(self.timesteps)
        return 3 * self.steps if self.variant == "stack" else 3


def needs_unet(feature: Feature) -> bool:
    """Whether the feature, or a part of it, is a U-Net's estimate."""
    return "dnf" in feature.split("+")


def feature_channels(feature: Feature, dnf: DnfConfig) -> tuple[int, ...]:
    """Return how many channels each part of the feature has, in their order."""
    return tuple(dnf.channels if part == "dnf" else 3 for part in feature.split("+"))


class ResNetConfig(_Frozen):
    """Which ResNet: `depth` 18 or 50; `width` channels after the stem; `stem_pool` the stem's max-pooling.

    64 and True are the published network. Without the pooling every stage works at twice the resolution,
    which keeps fine residuals; at half the width it costs the same. With `branches` several such networks
    stand side by side: each sees that many of the channels, in turn, and a weighted sum of their logits
    decides.
    """

    depth: Literal[18, 50] = 50
    width: int = Field(default=64, ge=8, le=128)
    stem_pool: bool = True
    in_channels: int = Field(default=3, ge=1)
    branches: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @model_validator(mode="after")
    def _branches_share_the_channels(self) -> "ResNetConfig":
        if self.branches and sum(self.branches) != self.in_channels:
            raise ValueError("the branches must share all channels")
        return self


class UnetSource(_Frozen):
    """Where the U-Net is: a diffusers `folder` inside the bundle, or a hub id at a `revision`."""

    folder: str | None = None
    hub_id: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "UnetSource":
        if (self.folder is None) == (self.hub_id is None):
            raise ValueError("a U-Net is either in a folder of the bundle or on the hub")
        return self


class Manifest(_Frozen):
    """A detector: its parts, its operating point, and where it comes from.

    `feature` is what the classifier looks at: "dnf", alone or with parts stacked on it: "npr", the picture's
    neighbouring-pixel residuals, and "rgb", the picture itself. These two alone need no U-Net, and are what
    the feature is compared with.
    `figures` are measured, by name; `provenance` says how it was trained; `files` maps each file of the
    bundle, as a relative POSIX path, to its SHA-256 in hex.
    """

    name: str = Field(min_length=1, max_length=100)
    version: str = Field(min_length=1, max_length=50)
    created: str
    preprocessing: Preprocessing
    feature: Feature = "dnf"
    dnf: DnfConfig
    unet: UnetSource | None
    classifier: ResNetConfig
    classifier_file: str = "classifier.safetensors"
    calibration: PlattScaling
    thresholds: Thresholds
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Manifest":
        if needs_unet(self.feature) != (self.unet is not None):
            raise ValueError("a feature with dnf, and no other, needs a U-Net")
        if self.dnf.quantise and self.feature != "dnf":
            raise ValueError("only the feature dnf alone can be quantised")
        expected = sum(feature_channels(self.feature, self.dnf))
        if self.classifier.in_channels != expected:
            raise ValueError(f"the classifier must take the {expected} channels of the feature")
        return self

    @field_validator("files")
    @classmethod
    def _inside_the_bundle(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{name} is not inside the bundle")
        return files
