"""Volumes, their sources, data sets and storage."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tokenunify.config.base import Count, Name, Padding, PositiveInt, Shape, Strict, VoxelSize, check_multiple


class FileSource(Strict):
    """One array of a volume in a file, a folder of images or at a URL."""

    path: str | None = None
    """Local file, folder or glob; `${VARIABLE}` is expanded when used and never hashed."""
    url: str | None = None
    """http(s) address; with `indices` it holds `{index}`, one file per section."""
    indices: tuple[int, int] | None = None
    """First and one past the last `{index}` of an image sequence."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Checksum of the file (not of sequences); null records what the first download finds."""
    format: Literal["hdf5", "tiff", "images", "zarr", "npy", "neuroproof"]
    dataset: str | None = None
    """Path of the array inside an HDF5 file or a zarr group."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path or url")
        if self.indices is not None and "{index}" not in (self.url or ""):
            raise ValueError("indices need a url with {index}")
        if self.format == "hdf5" and self.dataset is None:
            raise ValueError("format hdf5 needs dataset, the array's path inside the file")
        return self


class Phantom(Strict):
    """Parameters of the built-in generated neuropil."""

    seed: int
    shape: Shape
    density: Annotated[float, Field(gt=0)] = 1.0
    """Neurites per volume relative to the default packing."""


class Source(Strict):
    """Where raw and labels come from: files, or the built-in phantom."""

    raw: FileSource | None = None
    labels: FileSource | None = None
    phantom: Phantom | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.raw is None) == (self.phantom is None):
            raise ValueError("give either raw (and labels) or phantom")
        if self.phantom is not None and self.labels is not None:
            raise ValueError("a phantom brings its own labels")
        return self


class RoiConfig(Strict):
    """A box in voxels of the source."""

    offset: Padding
    shape: Shape


class Volume(Strict):
    """One EM volume: where it comes from and how it is to be read."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Tried in order; the first that works is used."""
    voxel_size_nm: VoxelSize
    roi: RoiConfig | None = None
    """Part of the source to ingest; null takes all."""
    zero: Literal["background", "unlabelled"] = "background"
    """Meaning of label 0 in training: background (affinity 0) or unlabelled (masked out)."""
    license: str | None = None
    citation: str | None = None


class TrainVolume(Strict):
    """A labelled training volume, or a range of its sections."""

    volume: Name
    sections: tuple[Count, PositiveInt] | None = None
    """First and one past the last section used; null uses all."""


def _name_alone(value: Any) -> Any:
    return {"volume": value} if isinstance(value, str) else value


class Dataset(Strict):
    """Which volumes train, choose (thresholds, checkpoint) and test."""

    train: Annotated[
        tuple[Annotated[TrainVolume, BeforeValidator(_name_alone, json_schema_input_type=TrainVolume | Name)], ...],
        Field(min_length=1),
    ]
    """Names, or names with sections."""
    validation: tuple[Name, ...] = ()
    test: tuple[Name, ...] = ()


class Storage(Strict):
    """Sizes on disk and of the unit of work: chunk divides shard divides block."""

    chunk_shape: Shape = (16, 64, 64)
    shard_shape: Shape = (32, 256, 256)
    block_shape: Shape = (32, 256, 256)

    @model_validator(mode="after")
    def _nested(self) -> Self:
        check_multiple("storage.shard_shape", self.shard_shape, "chunk_shape", self.chunk_shape)
        check_multiple("storage.block_shape", self.block_shape, "shard_shape", self.shard_shape)
        return self
