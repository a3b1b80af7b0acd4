"""What a bundle says of itself: the contents of bundle.json."""

from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from detector.calibration import PlattScaling
from detector.policy import Thresholds

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
    views: Literal[1, 4, 9] = 1

    @model_validator(mode="after")
    def _one_squash(self) -> "Preprocessing":
        if self.mode == "squash" and self.views != 1:
            raise ValueError("a squashed picture has one view")
        return self


class DnfConfig(_Frozen):
    """How the feature is computed.

    `variant` names what is kept of the `steps` estimates along the inversion; with "first" only one
    forward pass is made, at t = 0. `quantise` reproduces the published pipeline, which clamps the feature
    to 0..1 and stores it as bytes between the two networks; it exists for parity.
    """

    variant: Variant = "first"
    steps: int = Field(default=20, ge=1, le=1000)
    quantise: bool = False

    @property
    def channels(self) -> int:
        """How many channels the feature has."""
        return 3 * self.steps if self.variant == "stack" else 3


class ResNetConfig(_Frozen):
    """Which ResNet: `depth` 18 or 50; `width` channels after the stem; `stem_pool` the stem's max-pooling.

    64 and True are the published network. Without the pooling every stage works at twice the resolution,
    which keeps fine residuals; at half the width it costs the same.
    """

    depth: Literal[18, 50] = 50
    width: int = Field(default=64, ge=8, le=128)
    stem_pool: bool = True
    in_channels: int = Field(default=3, ge=1)


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

    `figures` are measured, by name; `provenance` says how it was trained; `files` maps each file of the
    bundle, as a relative POSIX path, to its SHA-256 in hex.
    """

    name: str = Field(min_length=1, max_length=100)
    version: str = Field(min_length=1, max_length=50)
    created: str
    preprocessing: Preprocessing
    dnf: DnfConfig
    unet: UnetSource
    classifier: ResNetConfig
    classifier_file: str = "classifier.safetensors"
    calibration: PlattScaling
    thresholds: Thresholds
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @field_validator("files")
    @classmethod
    def _inside_the_bundle(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{name} is not inside the bundle")
        return files
