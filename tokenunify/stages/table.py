"""The stages of the workflow, one record each: their subcommand, version, store and resources come from here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenunify.store import forms


@dataclass(frozen=True)
class Store:
    """The array that the parts of a block-wise stage fill."""

    place: str
    """In the store's folder."""
    dtype: str
    inputs: tuple[type[forms.Form], ...]
    """Forms of the manifests that `prepare` reads, in their order; the first gives the shape."""
    has_channels: bool = False
    """Whether a first axis counts offsets."""


@dataclass(frozen=True)
class Stage:
    """What holds for a stage in every configuration."""

    version: int
    """Raise it when results change: the stage and what follows rerun."""
    module: str
    """Its `run(section, plain, **arguments)` does the stage."""
    help: str
    paths: tuple[str, ...] = ()
    """Arguments with one path."""
    lists: tuple[str, ...] = ()
    """Arguments with any number of paths, none included."""
    numbers: tuple[str, ...] = ()
    blockwise: bool = False
    device: bool = False
    permit: bool = False
    """Whether it takes what downloads are allowed to do."""
    store: Store | None = None
    resources: Mapping[str, int] | None = field(default_factory=dict)
    """What its jobs ask for, where it differs from the usual; None for jobs of seconds that run beside Snakemake."""
    column: str = ""
    """Where the report shows its time; empty for stages that belong to no model on one volume."""


STAGES = {
    "download": Stage(
        version=1,
        module="data.download.download",
        help="fetch and verify source files",
        paths=("downloads", "output"),
        permit=True,
        resources={"mem_mb": 2000, "runtime": 720},
    ),
    "ingest": Stage(
        version=1,
        module="data.ingest.ingest",
        help="turn source files into an OME-Zarr volume",
        paths=("source", "output"),
        numbers=("threads",),
        permit=True,
        resources={"threads": 2},
    ),
    "pretrain": Stage(
        version=3,
        module="learning.pretrain",
        help="pre-train a network on unlabelled volumes",
        paths=("output",),
        lists=("volumes",),
        numbers=("seed", "threads"),
        device=True,
        resources={"threads": 2, "mem_mb": 16000, "runtime": 2880},
    ),
    "finetune": Stage(
        version=3,
        module="learning.finetune",
        help="train a network to predict affinities",
        paths=("output",),
        lists=("train", "validation", "pretrained", "published"),
        numbers=("seed", "threads"),
        device=True,
        resources={"threads": 2, "mem_mb": 16000, "runtime": 2880},
    ),
    "predict": Stage(
        version=1,
        module="learning.predict",
        help="predict the affinities of a part of the blocks",
        paths=("raw", "weights", "prepared", "output"),
        numbers=("threads",),
        blockwise=True,
        device=True,
        store=Store("affinities.zarr", "uint8", (forms.ShapedVolume, forms.Finetuned), has_channels=True),
        resources={"threads": 2, "mem_mb": 8000, "runtime": 720},
        column="affinities",
    ),
    "baseline": Stage(
        version=1,
        module="segmentation.baseline",
        help="smoothed raw intensities in place of affinities",
        paths=("raw", "prepared", "output"),
        blockwise=True,
        store=Store("affinities.zarr", "uint8", (forms.ShapedVolume,), has_channels=True),
        column="affinities",
    ),
    "fragments": Stage(
        version=4,
        module="segmentation.fragments",
        help="seeded watershed of a part of the blocks",
        paths=("affinities", "volume", "prepared", "output"),
        blockwise=True,
        store=Store("fragments.zarr", "uint64", (forms.ShapedAffinities, forms.Volume)),
        column="fragments",
    ),
    "rag": Stage(
        version=3,
        module="segmentation.rag",
        help="region adjacency graph of a part of the blocks",
        paths=("affinities", "fragments", "output"),
        numbers=("threads",),
        blockwise=True,
        column="rag",
    ),
    "tune": Stage(
        version=3,
        module="tune",
        help="choose threshold or beta on validation volumes",
        paths=("output",),
        lists=("rags", "fragments", "volumes"),
        resources={"mem_mb": 8000},
        column="tune",
    ),
    "agglomerate": Stage(
        version=3,
        module="segmentation.agglomerate",
        help="fragments to segments, on the graph",
        paths=("rag", "output"),
        lists=("tuned",),
        resources={"mem_mb": 16000},
        column="agglomerate",
    ),
    "relabel": Stage(
        version=2,
        module="segmentation.relabel",
        help="write the segmentation of a part of the blocks",
        paths=("fragments", "lut", "prepared", "output"),
        blockwise=True,
        # Level 0 of a pyramid for viewing.
        store=Store("segmentation.zarr/0", "uint64", (forms.ShapedFragments, forms.Table)),
        column="relabel",
    ),
    "evaluate": Stage(
        version=6,
        module="evaluation.evaluate",
        help="score a segmentation",
        paths=("segmentation", "volume", "output"),
        column="evaluate",
    ),
    "blockings": Stage(
        version=1,
        module="blockings",
        help="compare segmentations of fragments in different blocks",
        paths=("affinities", "volume", "lut", "output"),
        resources={"mem_mb": 16000},
        column="blockings",
    ),
    "metrics": Stage(
        version=2,
        module="evaluation.score_table",
        help="collect a volume's scores in one table",
        paths=("output",),
        lists=("scores", "luts", "predictions", "weights"),
        resources=None,
    ),
    "segmentations": Stage(
        version=1,
        module="segmentations",
        help="list a volume's segmentations in one table",
        paths=("output",),
        lists=("manifests",),
        resources={"mem_mb": 8000},
    ),
    "report": Stage(
        version=5,
        module="evaluation.report",
        help="one self-contained page of tables, curves and pictures",
        paths=("output",),
        lists=("metrics", "segmentations", "manifests"),
        resources=None,
    ),
}
