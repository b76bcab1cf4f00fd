"""What a run may take of the machine: sizes on disk, limits of downloads, and what the jobs of each stage ask for."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from tokenunify.config.base import PositiveInt, Shape, Strict, check_multiple
from tokenunify.stages.table import STAGES

STAGES_WITH_JOBS = tuple(name for name, stage in STAGES.items() if stage.resources is not None)
if TYPE_CHECKING:
    StageName = str
else:
    StageName = Literal[STAGES_WITH_JOBS]


class Storage(Strict):
    """Sizes on disk and of the unit of work: chunk divides shard divides block."""

    chunk_shape: Shape = (16, 64, 64)
    """Voxels of a chunk along z, y, x: what is read and compressed at once."""
    shard_shape: Shape = (32, 256, 256)
    """Voxels of a file along z, y, x, a multiple of chunk_shape."""
    block_shape: Shape = (32, 256, 256)
    """Voxels of a block along z, y, x, the unit of work: a multiple of shard_shape."""

    @model_validator(mode="after")
    def nested(self) -> Self:
        check_multiple("storage.shard_shape", self.shard_shape, "chunk_shape", self.chunk_shape)
        check_multiple("storage.block_shape", self.block_shape, "shard_shape", self.shard_shape)
        return self


class Downloads(Strict):
    """Limits of downloads; none of it changes a result's identity."""

    max_mb_per_second: Annotated[float, Field(gt=0)] | None = None
    """Most MB per second of each job; null: no limit."""
    max_unpacked_gb: Annotated[float, Field(gt=0)] = 100.0
    """What unpacks to more is refused: an archive's members together, a gzip file, packed NRRD, one image or page."""


class Resources(Strict):
    """What a stage's jobs ask for; none of it changes a result's identity."""

    parts: PositiveInt = 1
    """Jobs per volume, each a contiguous range of blocks (block-wise stages)."""
    threads: PositiveInt = 1
    """CPU threads of a job."""
    mem_mb: PositiveInt = 4000
    """Memory of a job in MB; a retry asks for as much again."""
    runtime: PositiveInt = 120
    """Minutes."""
    gpus: PositiveInt = 1
    """GPUs per node, each with so many threads (stages that run a network; predict uses one)."""
    nodes: PositiveInt = 1
    """Nodes that share a training (pretrain and finetune on a cluster), each with all of mem_mb."""


STAGE_RESOURCES = {name: Resources(**STAGES[name].resources or {}) for name in STAGES_WITH_JOBS}
