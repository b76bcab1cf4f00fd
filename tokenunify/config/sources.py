"""Where data comes from: files, the hubs and archives they lie in, published weights, and the built-in phantom."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tokenunify.config.base import Shape, Strict, check_rising

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


def check_one_place(source: Strict, *places: str) -> None:
    """Refuse a source that names no place or several."""
    if sum(getattr(source, place) is not None for place in places) != 1:
        raise ValueError(f"give one of {', '.join(places[:-1])} and {places[-1]}")


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
    def place_and_sections(self) -> Self:
        check_one_place(self, "path", "url", "huggingface", "drive")
        if self.indices is None:
            if self.url is not None and self.format == "images" and self.member is None:
                raise ValueError(f"format images needs indices and a url with {{index}}, got {self.url!r}; add indices")
            if self.url is not None and "{index" in self.url:
                raise ValueError(f"a url with {{index}} needs indices, got {self.url!r}; add indices or name one file")
            return self
        url = self.url or ""
        try:
            is_numbered = url.format(index=0) != url.format(index=1)
        except (AttributeError, LookupError, ValueError):  # braces that hold something else
            is_numbered = False
        if not is_numbered:
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
    def suits_format(self) -> Self:
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
    def one_kind(self) -> Self:
        if (self.raw is None) == (self.phantom is None):
            raise ValueError("give either raw (and labels, mask) or phantom")
        if self.phantom is not None and self.labels is not None:
            raise ValueError("a phantom brings its own labels")
        if self.phantom is not None and self.mask is not None:
            raise ValueError("a phantom has no mask; remove mask")
        return self


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
    def one_place(self) -> Self:
        check_one_place(self, "path", "url", "huggingface")
        return self
