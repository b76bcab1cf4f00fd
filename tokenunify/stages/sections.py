"""What each stage is told: the config sections that travel as --config-json, and how they come from the config."""

import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tokenunify import config as c
from tokenunify.config import Strict
from tokenunify.config.base import check_multiple
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.stages.table import STAGES


class Sample(Strict):
    """Where a sampled region may lie: the first of the places that is not blank is fetched."""

    shape: c.Shape
    places: tuple[tuple[c.Count, c.Count, c.Count], ...]
    """First voxels, in the source's voxels."""
    max_blank: float


class Download(Strict):
    sources: tuple[c.Source | c.WeightsSource, ...]
    terms: c.Terms | None = Field(None, exclude_if=lambda terms: terms is None)
    license: str | None = Field(None, exclude_if=lambda license: license is None)
    """Noted in the volume's store, as are citation and terms, to go along with the data; none makes it again."""
    citation: str | None = Field(None, exclude_if=lambda citation: citation is None)
    voxel_size_nm: c.VoxelSize | None = Field(None, exclude_if=lambda size: size is None)
    """Given where only a box of a file is fetched, as is `roi`."""
    roi: c.RoiConfig | None = Field(None, exclude_if=lambda roi: roi is None)
    sample: Sample | None = Field(None, exclude_if=lambda sample: sample is None)
    """In place of the roi."""
    found: dict[str, str] = Field({}, exclude_if=lambda found: not found)
    """Size and time of the sources' local files, by `{source}.{role}`: a file that changed is looked at again."""


class Permit(c.Downloads):
    """What downloads are allowed to do: it is no part of a section, as it decides no result."""

    accept_licenses: tuple[c.Name, ...] = ()

    @property
    def max_unpacked_bytes(self) -> float:
        return self.max_unpacked_gb * 1e9


DEFAULT_PERMIT = Permit()


def permit(text: str) -> Permit:
    """The value of --permit."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--permit must be JSON, got {text[:80]!r} ({error}); leave it out") from None
    return c.validate(Permit, given, "--permit")


class Ingest(Strict):
    voxel_size_nm: c.VoxelSize
    roi: c.RoiConfig | None
    zero: str
    chunk_shape: c.Shape
    shard_shape: c.Shape
    intensity: c.Intensity | None = Field(None, exclude_if=lambda intensity: intensity is None)
    label_ids: c.LabelIds = Field("keep", exclude_if=lambda label_ids: label_ids == "keep")
    stated_voxel_size: c.StatedVoxelSize = Field("check", exclude_if=lambda stated: stated == "check")

    @model_validator(mode="after")
    def a_shard_holds_whole_chunks(self) -> Self:
        check_multiple("shard_shape", self.shard_shape, "chunk_shape", self.chunk_shape)
        return self


class Region(Strict):
    """Part of a corpus: a box of a volume, in its voxels, without those that no crop may touch."""

    volume: c.Name
    box: c.RoiConfig | None
    """Null: the whole volume."""
    avoid: tuple[c.RoiConfig, ...]


class Pretrain(c.Pretrain):
    network: c.Network
    datasets: tuple[tuple[Region, ...], ...]
    """Regions of each data set; their volumes are those of --volumes."""


class Finetune(c.Finetune):
    network: c.Network
    sections: tuple[tuple[int, int] | None, ...]
    """Sections used of each training volume, in the order of --train."""
    start: str = "none"
    """Name of the pretraining that --pretrained is of; `published` with --published."""
    transfer: Literal["strict", "partial"] = "strict"
    train: c.Train = "all"
    lora: c.Lora | None = None
    """The adapters, where they are what is trained."""


class Grid(Strict):
    """Storage of a block-wise stage's array and its unit of work."""

    chunk_shape: c.Shape
    shard_shape: c.Shape
    block_shape: c.Shape

    @model_validator(mode="after")
    def no_two_blocks_share_a_file(self) -> Self:
        check_multiple("shard_shape", self.shard_shape, "chunk_shape", self.chunk_shape)
        check_multiple("block_shape", self.block_shape, "shard_shape", self.shard_shape)
        return self


class Predict(c.Predict, Grid):
    crop: c.Shape
    stride: c.Shape
    offsets: tuple[Coordinate, ...] = Field(c.NEAREST, exclude_if=lambda offsets: offsets == c.NEAREST)
    """Offsets of the channels that are stored, the first ones of the network; the others only help its training."""


class Baseline(Grid):
    sigma_nm: float


class Fragments(c.Fragments, Grid):
    block_shape: c.Shape


class Rag(Strict):
    block_shape: c.Shape
    histograms: bool = False
    """Whether a score of these fragments' graph needs them."""
    lifted: bool = Field(False, exclude_if=lambda lifted: not lifted)
    """Whether a multicut needs the pairs of fragments that long-range affinities link."""


class Tune(Strict):
    segmentation: c.Segmentation
    """Its fragments are left at their default: they are an input."""
    erode_labels: bool
    ignore_label: int


class Agglomerate(Strict):
    segmentation: c.Segmentation
    """As for tune."""


class Relabel(Grid):
    pass


class Evaluate(Strict):
    block_shape: c.Shape
    erode_labels: bool
    ignore_label: int
    skeleton_spacing_nm: float | None


class Blockings(Grid):
    segmentation: c.Segmentation
    """At the value that agglomerate took; its fragments' own blocks are not used."""
    block_shapes: tuple[c.Shape, ...]
    """Blocks of the fragments, compared two by two; what they have in common is counted in `block_shape`."""


class Row(Strict):
    """One row of metrics.csv: what the config knows of it. The files come in the same order on the command line."""

    volume: str
    dataset: str
    split: str
    model: str
    network: str
    pretraining: str
    seed: int
    segmentation: str
    method: str
    test_raw_in_pretraining: bool | None
    """Whether pre-training saw the raw of this volume; null where there was none, or it is unknown."""


class Metrics(Strict):
    rows: tuple[Row, ...]


class Segmentation(Strict):
    """One row of segmentations.csv: what the config knows of it."""

    volume: str
    dataset: str
    model: str
    seed: int
    segmentation: str
    method: str
    fragments: str
    """Folder of its fragments and of their graph."""


class Segmentations(Strict):
    rows: tuple[Segmentation, ...]


class Rights(Strict):
    """What the owner of some volumes' data asks of who uses them; it changes no voxel, and only the report tells it."""

    volumes: tuple[c.Name, ...]
    license: str | None = Field(None, exclude_if=lambda license: license is None)
    terms: c.Terms | None = Field(None, exclude_if=lambda terms: terms is None)
    citation: str | None = Field(None, exclude_if=lambda citation: citation is None)


class Report(Strict):
    title: str
    rights: tuple[Rights, ...] = ()
    """Those of a sampled region are its volume's."""


SECTIONS: dict[str, type[Strict]] = {stage: globals()[stage.capitalize()] for stage in STAGES}
"""The section of a stage is the class with its name."""


def to_json(stage: str, section: Strict) -> str:
    """The text of --config-json: the section with sorted keys, and the stage's version."""
    return json.dumps({"version": STAGES[stage].version, **section.model_dump(mode="json")}, sort_keys=True)


def from_json(stage: str, text: str) -> tuple[Any, dict]:
    """The typed section of --config-json, and the plain value (version included) that names the store."""
    name = f"{stage} --config-json"
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} must be JSON, got {text[:80]!r} ({error}); paste what Snakemake prints") from None
    if not isinstance(plain, dict):
        raise InputError(f"{name} must be an object of keys and values, got {text[:80]!r}; paste what Snakemake prints")
    value = {key: item for key, item in plain.items() if key != "version"}
    return c.validate(SECTIONS[stage], value, name), plain
