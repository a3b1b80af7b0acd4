"""The contents of bundle.json: a detector's parts, its operating point and its provenance."""

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
    """How a picture becomes the U-Net's input."""

    #: "squash" resizes the whole picture to one square (bicubic, antialiased), as published; "crop" cuts
    #: squares at the picture's own scale.
    mode: Literal["squash", "crop"] = "squash"
    #: Side of the U-Net's input in pixels.
    size: int = Field(default=256, ge=32, le=1024, multiple_of=8)
    #: Number of squares, in an even grid; a single one is cut from the middle.
    views: Literal[1, 4, 9, 16] = 1

    @model_validator(mode="after")
    def _one_view_when_squashed(self) -> "Preprocessing":
        if self.mode == "squash" and self.views != 1:
            raise ValueError("a squashed picture has one view")
        return self


class DnfConfig(_Frozen):
    """How the Diffusion Noise Feature is computed."""

    #: "first" estimates the noise of the clean picture at each of `timesteps` and stacks the estimates; the
    #: published feature is the one at t = 0. The others keep the last, the mean or all of the estimates along
    #: a DDIM inversion.
    variant: Variant = "first"
    timesteps: tuple[Annotated[int, Field(ge=0, le=999)], ...] = Field(default=(0,), min_length=1)
    #: Steps of the DDIM inversion; the variant "first" ignores them.
    steps: int = Field(default=20, ge=1, le=1000)
    #: Clamp the feature to 0..1 and round it to bytes before the classifier, for parity with the published
    #: pipeline, which saves it as a picture file.
    quantise: bool = False

    @property
    def channels(self) -> int:
        """The number of channels of the feature."""
        if self.variant == "first":
            return 3 * len(self.timesteps)
        return 3 * self.steps if self.variant == "stack" else 3


def needs_unet(feature: Feature) -> bool:
    """Return whether a part of the feature is a U-Net's estimate."""
    return "dnf" in feature.split("+")


def feature_channels(feature: Feature, dnf: DnfConfig) -> tuple[int, ...]:
    """Return the number of channels of each part of the feature, in their order."""
    return tuple(dnf.channels if part == "dnf" else 3 for part in feature.split("+"))


class ResNetConfig(_Frozen):
    """A ResNet classifier or an ensemble of them; the defaults are the published network."""

    depth: Literal[18, 50] = 50
    #: Channels after the stem.
    width: int = Field(default=64, ge=8, le=128)
    #: Max-pooling in the stem. Without it every stage has twice the resolution, which keeps fine residuals;
    #: at half the width the cost is the same.
    stem_pool: bool = True
    in_channels: int = Field(default=3, ge=1)
    #: Channels of each network of an ensemble, in their order; empty for a single network.
    branches: tuple[Annotated[int, Field(ge=1)], ...] = ()

    @model_validator(mode="after")
    def _branches_share_the_channels(self) -> "ResNetConfig":
        if self.branches and sum(self.branches) != self.in_channels:
            raise ValueError("the branches must share all channels")
        return self


class UnetSource(_Frozen):
    """Where the U-Net's weights are: inside the bundle or on the Hugging Face hub."""

    #: Folder in diffusers' format, relative to the bundle.
    folder: str | None = None
    hub_id: str | None = None
    #: Revision on the hub; None is the newest.
    revision: str | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "UnetSource":
        if (self.folder is None) == (self.hub_id is None):
            raise ValueError("a U-Net is either in a folder of the bundle or on the hub")
        return self


class Manifest(_Frozen):
    """A detector: its parts, its operating point and its provenance."""

    name: str = Field(min_length=1, max_length=100)
    version: str = Field(min_length=1, max_length=50)
    #: ISO 8601 time.
    created: str
    preprocessing: Preprocessing
    #: The classifier's input: parts that are stacked in the order of their names. "dnf" is the noise feature,
    #: "npr" the residuals of neighbouring pixels and "rgb" the picture. "npr" and "rgb" alone are baselines.
    feature: Feature = "dnf"
    dnf: DnfConfig
    #: None for a feature without "dnf".
    unet: UnetSource | None
    classifier: ResNetConfig
    classifier_file: str = "classifier.safetensors"
    calibration: PlattScaling
    thresholds: Thresholds
    #: Measured figures, by the name of the measurement.
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    #: How the detector was trained.
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    #: SHA-256 in hex of each file of the bundle, by its relative POSIX path.
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
