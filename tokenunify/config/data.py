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
CHUNKED = ("zarr", "n5", "precomputed")
"""Formats that are folders of chunks: behind a url, only the volume's roi is fetched from them."""


class HubFile(Strict):
    """One file of a model repository on the Hugging Face Hub, or on the mirror that HF_ENDPOINT names."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """owner/name"""
    file: str
    """Path of the file inside the repository."""
    revision: str | None = "main"
    """Branch, tag or commit; null records the newest commit at the first download and stays with it."""


class HubData(HubFile):
    """One file, or a glob of images, of a repository on the Hugging Face Hub."""

    revision: str | None = None
    """Branch, tag or commit; null records the newest commit at the first download and stays with it."""
    repo_type: Literal["dataset", "model"] = "dataset"
    """Kind of repository."""


class DriveFile(Strict):
    """One file of a folder that is shared with everyone on Google Drive."""

    folder: Annotated[str, Field(pattern=r"^[\w-]+$")]
    """What the folder's address ends with."""
    file: str
    """Path inside the folder."""


class FileSource(Strict):
    """One array of a volume in a file, a folder of images, an archive or a chunked volume behind a URL."""

    path: str | None = None
    """Local file, folder or glob; `${VARIABLE}` is expanded when used and never hashed."""
    url: Annotated[str, Field(pattern=r"^(https?|gs|s3|file)://")] | None = None
    """http(s) address; with `indices` it holds `{index}`, or `{index:04d}` for leading zeros: one file per section.

    Of zarr, n5 and precomputed also gs, s3 (at AWS_ENDPOINT_URL where that is set) or file: of these, only the volume's
    roi is fetched.
    """
    huggingface: HubData | None = Field(None, exclude_if=lambda place: place is None)
    """File of a repository on the Hugging Face Hub."""
    drive: DriveFile | None = Field(None, exclude_if=lambda place: place is None)
    """File of a shared folder on Google Drive."""
    member: str | None = Field(None, exclude_if=lambda member: member is None)
    """What to take out of a zip or tar archive: a file, a folder, or of images a glob."""
    partial: bool = Field(False, exclude_if=lambda partial: not partial)
    """Fetch only the volume's roi of an HDF5 file, from a server that answers requests for ranges of bytes."""
    indices: tuple[int, int] | None = None
    """First and one past the last `{index}` of an image sequence."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Checksum of the file or archive; of a folder or sequence, over the sorted (name, size, sha256) of its files.

    Where only the roi is fetched, of the zarr folder that the download makes of it. Null records what the first
    download finds. Files that an HDF5 file refers to are not in it: theirs are recorded beside it.
    """
    format: Format
    """File format; docs/reference/formats.md lists what each reads."""
    dataset: str | None = None
    """Path of the array inside an HDF5 file, zarr or n5 folder, key of a precomputed scale, layer/mag of wkw.

    Null takes the finest level of an OME-Zarr image, and of precomputed the finest scale, behind a url the one that has
    the volume's voxel size.
    """

    allow_missing: Annotated[float, Field(ge=0, le=1)] = Field(0.01, exclude_if=lambda share: share == 0.01)
    """Share of the chunks (of HDF5: voxels) in the volume's box that a file may lack: they are read as its fill value,
    mostly 0.

    They are counted and told of; where they are more, the volume is refused. 1 (or true) allows any number.
    """

    @property
    def is_box(self) -> bool:
        """Whether only the volume's roi is fetched."""
        return self.partial or (self.url is not None and self.format in CHUNKED and self.member is None)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        check_one_place(self, "path", "url", "huggingface", "drive")
        return self

    @model_validator(mode="after")
    def _one_file_per_section(self) -> Self:
        if self.indices is None:
            if self.url is not None and self.format == "images" and self.member is None:
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
        if self.indices[0] < 0:
            raise ValueError(f"indices must not be negative, got {list(self.indices)}; correct them")
        return self

    @model_validator(mode="after")
    def _fits_format(self) -> Self:
        if self.format in FOLDERS and self.member is None and self.path is None and not self.is_box:
            raise ValueError(f"format {self.format} is a folder: give its path, or the member of an archive")
        if self.huggingface and any(sign in self.huggingface.file for sign in "*?") and self.format != "images":
            raise ValueError(f"a glob as huggingface.file needs format images, got {self.format}; name one file")
        if self.url is not None and not self.url.startswith("http") and not self.is_box:
            raise ValueError(f"url must start with http unless format is one of {list(CHUNKED)}, got {self.url!r}")
        if self.is_box and not self.partial and "?" in (self.url or ""):
            raise ValueError(
                f"the url of a {self.format} is a folder, to which the names of chunks are added: it takes no query, "
                f"got {self.url!r}; give the address alone, of a folder that needs none"
            )
        if self.partial and (self.format != "hdf5" or self.url is None or self.member is not None):
            raise ValueError("partial needs format hdf5 and a url of the file itself; remove partial or correct them")
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


def check_one_place(source: Strict, *places: str) -> None:
    """Refuse a source that names no place or several."""
    if sum(getattr(source, place) is not None for place in places) != 1:
        raise ValueError(f"give one of {', '.join(places[:-1])} and {places[-1]}")


class WeightsSource(Strict):
    """Published weights: a state dict of safetensors or of torch.save, there also under `model` or `state_dict`."""

    path: str | None = None
    """Local file; `${VARIABLE}` is expanded when used and never hashed."""
    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """http(s) address of the file."""
    huggingface: HubFile | None = None
    """File of a repository on the Hugging Face Hub."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Checksum of the file; null records what the first download finds."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        check_one_place(self, "path", "url", "huggingface")
        return self


class Phantom(Strict):
    """Parameters of the built-in generated neuropil."""

    seed: int
    """Seed of the random generator: another seed is another volume."""
    shape: Shape
    """Voxels along z, y, x."""
    density: Annotated[float, Field(gt=0)] = 1.0
    """Neurites per volume relative to the default packing."""


class Source(Strict):
    """Where raw, labels and mask come from: files, or the built-in phantom."""

    raw: FileSource | None = None
    """The EM image."""
    labels: FileSource | None = None
    """Ground truth: an id per neuron, 0 as `zero` of the volume says."""
    mask: FileSource | None = Field(None, exclude_if=lambda mask: mask is None)
    """Where the volume is to be segmented, and its labels train and are scored: not 0. Pre-training reads all raw."""
    phantom: Phantom | None = None
    """Generated neuropil with labels, in place of files."""

    @property
    def files(self) -> dict[str, FileSource]:
        """What is given, by role."""
        given = {"raw": self.raw, "labels": self.labels, "mask": self.mask}
        return {role: file for role, file in given.items() if file is not None}

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
    def _rising(self) -> Self:
        _check_low_high("rescale", self.rescale)
        return self


class Percentile(Strict):
    """As rescale, between two percentiles of boxes spread evenly over the volume."""

    percentile: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(le=100)]]
    """Percentiles that become 0 and 255, for example `[0.1, 99.9]`."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
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
    def has_boxes(self) -> bool:
        """Whether the download fetches only the roi of some file."""
        return any(file.is_box for source in self.sources for file in source.files.values())

    @model_validator(mode="after")
    def _partial_of_roi(self) -> Self:
        for index, source in enumerate(self.sources):
            for role, file in source.files.items():
                if file.partial and self.roi is None:
                    raise ValueError(f"sources.{index}.{role}.partial fetches the roi alone: add roi or remove partial")
        return self

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
    """Name of a labelled volume."""
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
    """Names of the volumes that choose thresholds and checkpoints."""
    test: tuple[Name, ...] = ()
    """Names of the volumes that are scored for the report."""


class Downloads(Strict):
    """Limits of downloads; none of it changes a result's identity."""

    max_mb_per_second: Annotated[float, Field(gt=0)] | None = None
    """Most MB per second of each job; null: no limit."""
    max_unpacked_gb: Annotated[float, Field(gt=0)] = 100.0
    """What unpacks to more is refused: an archive's members together, a gzip file, packed NRRD, one image or page."""


class Storage(Strict):
    """Sizes on disk and of the unit of work: chunk divides shard divides block."""

    chunk_shape: Shape = (16, 64, 64)
    """Voxels of a chunk along z, y, x: what is read and compressed at once."""
    shard_shape: Shape = (32, 256, 256)
    """Voxels of a file along z, y, x, a multiple of chunk_shape."""
    block_shape: Shape = (32, 256, 256)
    """Voxels of a block along z, y, x, the unit of work: a multiple of shard_shape."""

    @model_validator(mode="after")
    def _nested(self) -> Self:
        check_multiple("storage.shard_shape", self.shard_shape, "chunk_shape", self.chunk_shape)
        check_multiple("storage.block_shape", self.block_shape, "shard_shape", self.shard_shape)
        return self
