"""Volumes, their sources, data sets and storage."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tokenunify.config.base import (
    Count,
    Name,
    Padding,
    PositiveInt,
    Shape,
    Strict,
    VoxelSize,
    check_multiple,
    check_rising,
)

Format = Literal[
    "hdf5",
    "images",
    "mrc",
    "n5",
    "neuroproof",
    "nifti",
    "npy",
    "nrrd",
    "precomputed",
    "tiff",
    "wkw",
    "zarr",
]
FOLDERS = ("n5", "precomputed", "wkw", "zarr")
"""Formats that are a folder."""
WITH_DATASET = ("hdf5", *FOLDERS)
NEED_DATASET = ("hdf5", "n5", "wkw")


class FileSource(Strict):
    """One array of a volume in a file, a folder of images or at a URL."""

    path: str | None = None
    """Local file, folder or glob; `${VARIABLE}` is expanded when used and never hashed."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """http(s) address; with `indices` it holds `{index}`, or `{index:04d}` for leading zeros: one file per section."""
    indices: tuple[int, int] | None = None
    """First and one past the last `{index}` of an image sequence."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Checksum of the file; of a folder or sequence, over the sorted (name, size, sha256) of its files.

    Null records what the first download finds.
    """
    format: Format
    dataset: str | None = None
    """Path of the array inside an HDF5 file, zarr or n5 folder, key of a precomputed scale, layer/mag of wkw."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path or url")
        return self

    @model_validator(mode="after")
    def _one_file_per_section(self) -> Self:
        if self.indices is None:
            if self.url is not None and self.format == "images":
                raise ValueError(f"format images needs indices and a url with {{index}}, got {self.url!r}; add indices")
            if self.url is not None and "{index" in self.url:
                raise ValueError(f"a url with {{index}} needs indices, got {self.url!r}; add indices or name one file")
            return self
        if not _is_numbered(self.url or ""):
            raise ValueError(
                f"indices need a url with {{index}} and no other field in braces, got {self.url!r}; correct url"
            )
        if self.format != "images":
            raise ValueError(f"indices need format images, got {self.format}; correct format or remove indices")
        check_rising("indices", self.indices)
        return self

    @model_validator(mode="after")
    def _fits_format(self) -> Self:
        if self.format in FOLDERS and self.url is not None:
            raise ValueError(
                f"format {self.format} is a folder, which no url gives; fetch it yourself and give its path"
            )
        if self.format in NEED_DATASET and self.dataset is None:
            raise ValueError(f"format {self.format} needs dataset, the array's path inside the file or folder")
        if self.format not in WITH_DATASET and self.dataset is not None:
            raise ValueError(
                f"dataset needs format {' or '.join(WITH_DATASET)}, got {self.format}; remove dataset or correct format"
            )
        return self


def _is_numbered(url: str) -> bool:
    try:
        return url.format(index=0) != url.format(index=1)
    except (AttributeError, LookupError, ValueError):
        return False


class HubFile(Strict):
    """One file of a model repository on the Hugging Face Hub, or on the mirror that HF_ENDPOINT names."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """owner/name"""
    file: str
    revision: str = "main"
    """Branch, tag or commit."""


class WeightsSource(Strict):
    """Published weights: a state dict that torch.save (by itself or under the key `model`) or safetensors wrote."""

    path: str | None = None
    """Local file; `${VARIABLE}` is expanded when used and never hashed."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    huggingface: HubFile | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Checksum of the file; null records what the first download finds."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.url, self.huggingface)) != 1:
            raise ValueError("give one of path, url and huggingface")
        return self


class Phantom(Strict):
    """Parameters of the built-in generated neuropil."""

    seed: int
    shape: Shape
    density: Annotated[float, Field(gt=0)] = 1.0
    """Neurites per volume relative to the default packing."""


class Source(Strict):
    """Where raw, labels and mask come from: files, or the built-in phantom."""

    raw: FileSource | None = None
    labels: FileSource | None = None
    mask: FileSource | None = Field(None, exclude_if=lambda mask: mask is None)
    """Where the volume is to be segmented: not 0."""
    phantom: Phantom | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.raw is None) == (self.phantom is None):
            raise ValueError("give either raw (and labels, mask) or phantom")
        if self.phantom is not None and self.labels is not None:
            raise ValueError("a phantom brings its own labels")
        if self.phantom is not None and self.mask is not None:
            raise ValueError("a phantom has no mask; remove mask")
        return self


class RoiConfig(Strict):
    """A box in voxels, (z, y, x)."""

    offset: Padding
    shape: Shape


def _check_low_high(key: str, ends: tuple[float, float]) -> None:
    if ends[0] >= ends[1]:
        raise ValueError(f"{key} must be [low, high] with low below high, got {list(ends)}; correct them")


class Rescale(Strict):
    """The grey values that become 0 and 255; those between are interpolated, those beyond are clipped."""

    rescale: tuple[float, float]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        _check_low_high("rescale", self.rescale)
        return self


class Percentile(Strict):
    """As rescale, between two percentiles of boxes spread evenly over the volume."""

    percentile: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(le=100)]]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        _check_low_high("percentile", self.percentile)
        return self


Intensity = Literal["clip"] | Rescale | Percentile


class Volume(Strict):
    """One EM volume: where it comes from and how it is to be read."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Tried in order; the first that works is used."""
    voxel_size_nm: VoxelSize
    roi: RoiConfig | None = None
    """Part of the source to ingest, in the source's voxels; null takes all."""
    zero: Literal["background", "unlabelled"] = "background"
    """Meaning of label 0 in training: background (affinity 0) or unlabelled (masked out)."""
    intensity: Intensity | None = Field(None, exclude_if=lambda intensity: intensity is None)
    """How raw becomes 0..255: clip, {rescale: [low, high]} or {percentile: [low, high]}.

    Null takes 0..255 and floats in 0..1, and refuses what is much beyond.
    """
    label_ids: Literal["keep", "dense"] = Field("keep", exclude_if=lambda label_ids: label_ids == "keep")
    """dense: ids are numbered 1, 2, ... in the order of the source's, which labels/original_ids of the store lists."""
    shard_shape: Shape | None = Field(None, exclude_if=lambda shape: shape is None)
    """Of this volume's files, for large volumes; null: storage.shard_shape."""
    license: str | None = None
    citation: str | None = None

    @model_validator(mode="after")
    def _roi_inside(self) -> Self:
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
    sections: tuple[Count, PositiveInt] | None = None
    """First and one past the last section used; null uses all."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.sections is not None:
            check_rising("sections", self.sections)
        return self


def name_alone(value: Any) -> Any:
    """A volume's name, where it stands alone, as the section that it is short for."""
    return {"volume": value} if isinstance(value, str) else value


class Dataset(Strict):
    """Which volumes train, choose (thresholds, checkpoint) and test."""

    train: Annotated[
        tuple[Annotated[TrainVolume, BeforeValidator(name_alone, json_schema_input_type=TrainVolume | Name)], ...],
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
