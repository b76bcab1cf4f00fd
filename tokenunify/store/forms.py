"""What is read of each stage's manifest: a damaged, hollow or foreign one is refused before a key is missed.

A form has the keys of `content`, and `run`; others may lie beside them. Its docstring names it in
messages: "... is not a manifest of a volume".
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


class Form(BaseModel):
    """a stage"""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


def beside_the_manifest(place: str) -> str:
    """Refuse a path that leads elsewhere."""
    path = PurePosixPath(place)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("expected a path beside the manifest")
    return place


Place = Annotated[str, AfterValidator(beside_the_manifest)]
Three = Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
Shape = Annotated[list[PositiveInt], Field(min_length=3, max_length=4)]
"""With the channels of affinities first."""
VoxelSize = Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)]
Offset = Annotated[list[float], Field(min_length=3, max_length=3)]


class Box(Form):
    """a box"""

    shape: Three


class Image(Box):
    """an image"""

    dtype: str


class Grid(Form):
    """a configuration with the grid of a store"""

    chunk_shape: Three | None = None
    shard_shape: Three | None = None


class Times(Form):
    """a run"""

    seconds: NonNegativeFloat = 0.0
    voxels: NonNegativeInt = 0


class Written(Times):
    """an ingest's run"""

    shards: dict[str, str] = {}


class Extent(Form):
    """a volume"""

    raw: Box


class Volume(Form):
    """a volume"""

    raw: Image
    labels: Image | None = None
    mask: Image | None = None
    voxel_size_nm: VoxelSize
    offset_nm: Offset
    zero: str
    config: Grid = Grid()
    run: Written


class Shaped(Form):
    """a volume or a prepared store"""

    raw: Box | None = None
    shape: Shape | None = None
    voxel_size_nm: VoxelSize
    offset_nm: Offset

    @model_validator(mode="after")
    def has_a_shape(self) -> Self:
        if self.raw is None and self.shape is None:
            raise ValueError("expected raw or shape")
        return self


class ShapedVolume(Shaped):
    """a volume"""

    raw: Box


class ShapedAffinities(Shaped):
    """a volume or prepared affinities"""

    stage: Literal["predict", "baseline"] | None = None


class ShapedFragments(Shaped):
    """a volume or prepared fragments"""

    stage: Literal["fragments"] | None = None


class Prepared(Form):
    """a prepared store"""

    store: Place
    shape: Shape
    block_shape: Three
    dtype: str | None = None
    voxel_size_nm: VoxelSize | None = None
    offset_nm: Offset | None = None
    config: Grid
    inputs: dict[str, str]


class Affinities(Prepared):
    """prepared affinities"""

    stage: Literal["predict", "baseline"]
    shape: Annotated[list[PositiveInt], Field(min_length=4, max_length=4)]


class Fragments(Prepared):
    """prepared fragments"""

    stage: Literal["fragments"]
    shape: Three


class Parts(Form):
    """a part's run"""

    num_parts: PositiveInt


class Graph(Form):
    """a part of a rag"""

    store: Place
    run: Parts


class Value(Form):
    """tune or agglomerate"""

    value: float


class Table(Form):
    """agglomerate"""

    lut: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Choice(Form):
    """agglomerate"""

    value: float
    source: str


class Scores(Form):
    """evaluate"""

    model_config = ConfigDict(extra="allow")
    voi_split: float
    voi_merge: float
    voi: float
    arand: float
    num_segments: int
    num_labels: int
    erode_labels: bool
    ignore_label: int


class Crops(Form):
    """a configuration of a prediction"""

    crop: list[int] = []
    stride: list[int] = []


class Prediction(Form):
    """a prepared prediction"""

    config: Crops


class Timed(Form):
    """a part of a stage"""

    run: Times


class Named(Form):
    """a network"""

    name: str


class Trained(Form):
    """a trained network"""

    parameters: int


class Network(Form):
    """a trained network"""

    network: Named


class Weights(Network):
    """trained weights"""

    weights: str


class Channels(Form):
    """a training's configuration"""

    offsets: list[Annotated[list[int], Field(min_length=3, max_length=3)]]


class Finetuned(Weights):
    """weights of a training"""

    finetune: Channels
