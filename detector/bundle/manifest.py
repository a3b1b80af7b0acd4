"""The contents of bundle.json: a detector's parts, its operating point and its provenance."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from detector.bundle.calibration import PlattScaling
from detector.bundle.thresholds import Thresholds

Feature = Literal["dnf", "dnf+npr", "dnf+rgb", "dnf+npr+rgb", "rgb", "npr", "npr+rgb", "npr+npr+rgb"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
Variant = Literal["first", "last", "mean", "stack"]


def _inside_the_bundle(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or path.as_posix() != name:
        raise ValueError(f"{name!r} is not a relative path inside the bundle, such as unet/config.json")
    return name


#: The relative POSIX path of a file or folder of a bundle.
InnerPath = Annotated[str, AfterValidator(_inside_the_bundle)]
#: A SHA-256 in hex.
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


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
    """A ResNet classifier; the defaults are the published network."""

    depth: Literal[18, 50] = 50
    #: Channels after the stem.
    width: int = Field(default=64, ge=8, le=128)
    #: Max-pooling in the stem. Without it every stage has twice the resolution, which keeps fine residuals;
    #: at half the width the cost is the same.
    stem_pool: bool = True
    in_channels: int = Field(default=3, ge=1)


class CooccurrenceConfig(_Frozen):
    """A linear classifier on the co-occurrences of neighbouring residuals."""

    kind: Literal["cooccurrences"] = "cooccurrences"
    #: Channels of its input: those of the noise feature, if any, and the picture's.
    in_channels: int = Field(default=3, ge=3, multiple_of=3)


class EnsembleConfig(_Frozen):
    """Several classifiers, each on its part of the feature, and the weighted sum of their logits."""

    kind: Literal["ensemble"] = "ensemble"
    branches: tuple[ResNetConfig | CooccurrenceConfig, ...] = Field(min_length=2)

    @property
    def in_channels(self) -> int:
        """Channels of the whole feature."""
        return sum(branch.in_channels for branch in self.branches)


def _ensemble_of_equals(config: Any) -> Any:
    """Read how version 4 wrote an ensemble: one ResNet with the channels of each branch."""
    if not isinstance(config, dict) or "kind" in config or "branches" not in config:
        return config
    shape = {name: value for name, value in config.items() if name not in {"branches", "in_channels"}}
    if not config["branches"]:
        return {**shape, "in_channels": config["in_channels"]}
    return {"kind": "ensemble", "branches": [{**shape, "in_channels": each} for each in config["branches"]]}


ClassifierConfig = ResNetConfig | CooccurrenceConfig | EnsembleConfig


class UnetSource(_Frozen):
    """Where the U-Net's weights are in the bundle."""

    #: Folder in diffusers' format.
    folder: InnerPath


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
    #: Beside a feature without "dnf" it makes the noise feature of the strongest view, to be shown; None for
    #: a baseline, which shows the classifier's input.
    unet: UnetSource | None
    classifier: Annotated[ClassifierConfig, BeforeValidator(_ensemble_of_equals)]
    classifier_file: InnerPath = "classifier.safetensors"
    calibration: PlattScaling
    thresholds: Thresholds
    #: Measured figures, by the name of the measurement.
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    #: How the detector was trained.
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    #: SHA-256 of each file of the bundle except the manifest itself and the model card.
    files: dict[InnerPath, Sha256] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Manifest":
        if needs_unet(self.feature) and self.unet is None:
            raise ValueError("a feature with dnf needs a U-Net")
        if self.dnf.quantise and self.feature != "dnf":
            raise ValueError("only the feature dnf alone can be quantised")
        channels = feature_channels(self.feature, self.dnf)
        if self.classifier.in_channels != sum(channels):
            raise ValueError(f"the classifier must take the {sum(channels)} channels of the feature")
        parts: list[tuple[str, ResNetConfig | CooccurrenceConfig]]
        if isinstance(self.classifier, EnsembleConfig):
            if tuple(branch.in_channels for branch in self.classifier.branches) != channels:
                raise ValueError("an ensemble must have a branch for each part of the feature")
            parts = list(zip(self.feature.split("+"), self.classifier.branches, strict=True))
        else:
            parts = [(self.feature, self.classifier)]
        if any(isinstance(branch, CooccurrenceConfig) and not part.endswith("rgb") for part, branch in parts):
            raise ValueError("co-occurrences are counted in a picture: the feature must end with rgb")
        return self
