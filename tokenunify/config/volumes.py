"""EM volumes: how a source is read, whose it is, and which volumes train, choose and test."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tokenunify.config.base import Count, Name, Padding, PositiveInt, Shape, Strict, VoxelSize, check_rising
from tokenunify.config.sources import Source
from tokenunify.geometry import Coordinate


class RoiConfig(Strict):
    """A box in voxels, (z, y, x)."""

    offset: Padding
    """First voxel of the box, z, y, x."""
    shape: Shape
    """Voxels of the box along z, y, x."""


def _check_low_high(key: str, ends: tuple[float, float]) -> None:
    if ends[0] >= ends[1]:
        raise ValueError(f"{key} must be [low, high] with low below high, got {list(ends)}; correct them")


class Rescale(Strict):
    """The grey values that become 0 and 255; those between are interpolated, those beyond are clipped."""

    rescale: tuple[float, float]
    """Grey values that become 0 and 255, for example `[80, 210]`."""

    @model_validator(mode="after")
    def low_below_high(self) -> Self:
        _check_low_high("rescale", self.rescale)
        return self


class Percentile(Strict):
    """As rescale, between two percentiles of boxes spread evenly over the volume."""

    percentile: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(le=100)]]
    """Percentiles that become 0 and 255, for example `[0.1, 99.9]`."""

    @model_validator(mode="after")
    def low_below_high(self) -> Self:
        _check_low_high("percentile", self.percentile)
        return self


Intensity = Literal["clip"] | Rescale | Percentile
LabelIds = Literal["keep", "dense", "components"]
StatedVoxelSize = Literal["check", "ignore"]


class Terms(Strict):
    """What the owner of the data asks of who uses them."""

    name: Name
    """What `accept_licenses` lists."""
    text: str
    """The terms in a sentence, as the message that asks for consent shows them."""
    url: str | None = None
    """Address of the full terms."""
    ask: bool = True
    """Whether the data may be downloaded only after `accept_licenses` lists the name."""


class TestCube(Strict):
    """A box of the source that others publish as a volume of its own, to test on."""

    __test__ = False  # pytest takes it for a test

    volume: Name
    """The name of the volume that is cut out, where the configuration has it."""
    box: RoiConfig | None
    """In the source's voxels, rather too large; null: its place is not published."""
    reference: str
    """Where the numbers are from."""


class Volume(Strict):
    """One EM volume: where it comes from and how it is to be read."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Tried in order; the first that works is used."""
    voxel_size_nm: VoxelSize
    """Size of a voxel along z, y, x in nm, for example `[40, 4, 4]`."""
    stated_voxel_size: StatedVoxelSize = Field("check", exclude_if=lambda stated: stated == "check")
    """check: files that state another voxel size are refused; ignore: voxel_size_nm holds whatever they state."""
    roi: RoiConfig | None = None
    """Part of the source to ingest, in the source's voxels; null takes all."""
    zero: Literal["background", "unlabelled"] = "background"
    """Meaning of label 0 in training: background (affinity 0) or unlabelled (masked out).

    Voxels without ground truth are marked by label 2^64-1 (CREMI's, in uint64), whatever 0 means, or by the mask: give
    membrane 0 and unlabelled voxels 2^64-1, and leave this at background.
    """
    intensity: Intensity | None = Field(None, exclude_if=lambda intensity: intensity is None)
    """How raw becomes 0..255: clip, {rescale: [low, high]} or {percentile: [low, high]}.

    Null takes 0..255 and floats in 0..1, and refuses what is much beyond.
    """
    label_ids: LabelIds = Field("keep", exclude_if=lambda label_ids: label_ids == "keep")
    """dense: ids are numbered 1, 2, ... in the order of the source's, which labels/original_ids of the store lists.

    components: each part of a label that touches no other by a face gets an id, 1, 2, ... in raster order (x fastest)
    of the parts' first voxels; labels/original_ids lists the label of each.
    """
    shard_shape: Shape | None = Field(None, exclude_if=lambda shape: shape is None)
    """Voxels of a file of this volume, for large volumes; null: storage.shard_shape."""
    license: str | None = None
    """Licence of the data, for example `CC BY 4.0`; the report shows it."""
    terms: Terms | None = Field(None, exclude_if=lambda terms: terms is None)
    """Terms that a user must know or accept before the download."""
    citation: str | None = None
    """Publication to cite; the report shows it."""
    facts_from: str | None = None
    """Where the addresses, shape and voxel size of this entry were read."""
    verified: bool = False
    """Whether a download from the public source has been seen to work."""
    download_gb: Annotated[float, Field(gt=0)] | None = None
    """GB of all files of the volume, where their publisher states it; null where nobody does."""
    test_cubes: tuple[TestCube, ...] = ()
    """What no corpus shows unless it allows test volumes; of a cube without a box it must exclude one by hand."""

    @property
    def declared_shape(self) -> Coordinate | None:
        """Voxels along z, y, x where the configuration tells them, else None."""
        if self.roi is not None:
            return self.roi.shape
        phantom = self.sources[0].phantom
        return phantom.shape if phantom else None

    @property
    def has_boxes(self) -> bool:
        """Whether the download fetches only the roi of some file."""
        return any(file.is_box for source in self.sources for file in source.files.values())

    @model_validator(mode="after")
    def roi_suits_sources(self) -> Self:
        for index, source in enumerate(self.sources):
            for role, file in source.files.items():
                if file.partial and self.roi is None:
                    raise ValueError(f"sources.{index}.{role}.partial fetches the roi alone: add roi or remove partial")
        for index, source in enumerate(self.sources):
            if self.roi is None or source.phantom is None:
                continue
            end = [o + n for o, n in zip(self.roi.offset, self.roi.shape, strict=True)]
            shape = list(source.phantom.shape)
            if any(e > n for e, n in zip(end, shape, strict=True)):
                raise ValueError(
                    f"roi must end inside sources.{index}.phantom of shape {shape}, got an end of {end}; correct roi"
                )
        return self


class TrainVolume(Strict):
    """A labelled training volume, or a range of its sections."""

    volume: Name
    """Name of a labelled volume."""
    sections: tuple[Count, PositiveInt] | None = None
    """First and one past the last section used; null uses all."""

    @model_validator(mode="after")
    def low_below_high(self) -> Self:
        if self.sections is not None:
            check_rising("sections", self.sections)
        return self


def name_alone(value: Any) -> Any:
    """A volume's name, where it stands alone, as the section that it is short for."""
    return {"volume": value} if isinstance(value, str) else value


class Application(Strict):
    """A volume that a dataset's models segment."""

    volume: Name
    """Name of a volume; it needs no labels."""
    models: tuple[Name, ...] | None = None
    """Names of the models; null: all that the dataset trains."""
    seeds: tuple[Count, ...] | None = None
    """Seeds of these models; null: the first seed of each."""


class Dataset(Strict):
    """Which volumes train, choose (thresholds, checkpoint) and test, and which others are segmented."""

    train: Annotated[
        tuple[Annotated[TrainVolume, BeforeValidator(name_alone, json_schema_input_type=TrainVolume | Name)], ...],
        Field(min_length=1),
    ]
    """Names, or names with sections."""
    validation: tuple[Name, ...] = ()
    """Names of the volumes that choose thresholds and checkpoints."""
    test: tuple[Name, ...] = ()
    """Names of the volumes that are scored for the report."""
    apply: tuple[
        Annotated[Application, BeforeValidator(name_alone, json_schema_input_type=Application | Name)], ...
    ] = Field((), exclude_if=lambda apply: not apply)
    """Volumes that the models segment, with labels or without: names, or names with models and seeds."""
