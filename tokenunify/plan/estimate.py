"""`tokenunify plan`: jobs, blocks, bytes, memory and hours of every stage of a table of scores, before anything runs.

A job takes `start_seconds` and then a time per voxel, a training and a prediction a time per operation and per byte of
the network's maps; both are fitted to finished runs by benchmarks/costs.py, on the machine that the costs name.
"""

import importlib
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenunify import config as c
from tokenunify import layout
from tokenunify.config import Strict, text
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate
from tokenunify.plan.plan import Plan
from tokenunify.plan.workload import Crops, Task, Workload
from tokenunify.store import forms, manifest
from tokenunify.text_table import aligned

logger = logging.getLogger(__name__)

COSTS = Path(__file__).resolve().parents[2] / "benchmarks" / "costs.json"
SIZES = (195e6, 1e9, 1e12, 50e12)
"""Voxels: one of the paper's wafers, and what labs have."""
TABLES = ("metrics", "segmentations")
HEADER = ("stage", "jobs", "blocks", "GB written", "GB memory", "hours", "of each job")


class StageCost(Strict):
    """The costs of a stage's jobs."""

    start_seconds: float
    """Until the first block."""
    seconds: float
    """Seconds for a million voxels."""
    bytes: float
    """Written for each voxel."""
    memory_mb: float
    """Held by a job of any size."""
    memory_bytes: float
    """For each voxel of a block, or of the volume whose graph is held."""


class NetworkCost(Strict):
    """The cost of a network's pass through one crop."""

    seconds_per_gflop: float
    seconds_per_gb: float
    """Seconds for a GB of the maps that training keeps."""
    memory: float
    """Bytes held for each byte of these maps."""


class Costs(Strict):
    """The measured costs, and the machine on which they were measured."""

    machine: str
    stages: dict[str, StageCost]
    """By stage, or stage and detail: fragments-3d."""
    forward: NetworkCost
    step: NetworkCost
    """Forward and backward."""


@dataclass
class Row:
    """A stage in the table."""

    jobs: int = 0
    blocks: int = 0
    bytes: float = 0.0
    memory_mb: float = 0.0
    seconds: float = 0.0
    longest: float = 0.0
    """Seconds of the longest job."""


class Estimate:
    """The costs of a configuration's tasks; `throughput` (stage -> voxels/s of a job) stands in for what was fitted."""

    def __init__(self, plan: Plan, costs: Costs, throughput: dict[str, float]):
        self.plan, self.costs, self.throughput = plan, costs, throughput

    def rows(self, tasks: Sequence[Task]) -> dict[c.StageName, Row]:
        """The table, by stage in the order of the tasks."""
        rows: dict[c.StageName, Row] = defaultdict(Row)
        forward, step = self.costs.forward, self.costs.step
        for task in tasks:
            row, crops = rows[task.stage], task.crops
            cost = self.costs.stages.get(f"{task.stage}-{task.detail}") or self.costs.stages.get(task.stage)
            if cost is None:
                raise InputError(f"the costs lack stage {task.stage!r}: measure them again with benchmarks/costs.py")
            computing = cost.seconds * task.voxels / 1e6  # of all blocks or steps
            memory = cost.memory_mb + cost.memory_bytes * task.held_voxels / 2**20  # of one job at its peak
            if crops is not None:
                held = (step if crops.trained else forward).memory * measured(crops).activation_bytes
                memory = memory + held * crops.at_once / 2**20
                computing = computing + crops.forward * seconds(forward, crops) + crops.trained * seconds(step, crops)
            if task.stage in self.throughput:
                computing = task.voxels / self.throughput[task.stage]
            row.jobs += task.jobs
            row.blocks += task.blocks
            row.bytes += cost.bytes * task.voxels * task.relative_bytes
            row.memory_mb = max(row.memory_mb, memory)
            row.seconds += task.jobs * cost.start_seconds + computing
            row.longest = max(row.longest, cost.start_seconds + computing / task.jobs)
        return rows


def seconds(cost: NetworkCost, crops: Crops) -> float:
    """Seconds for one crop."""
    one = measured(crops)
    return cost.seconds_per_gflop * one.flops / 1e9 + cost.seconds_per_gb * one.activation_bytes / 1e9


@cache
def measured(crops: Crops) -> Any:
    """Operations and bytes of maps of one crop: learning.summary's Cost."""
    summary = importlib.import_module("tokenunify.learning.summary")  # torch takes seconds to import
    return summary.cost(crops.network.model_dump(mode="json"), crops.offsets, crops.shape)


def shapes(plan: Plan) -> Callable[[str], Coordinate]:
    """A function from a volume's name to its shape; (0, 0, 0) where neither the configuration nor a file tells it."""

    @cache
    def shape_of(name: str) -> Coordinate:
        if shape := known_shape(plan, name):
            return shape
        headers = importlib.import_module("tokenunify.data.local_shape")  # the readers of all formats take a second
        if shape := headers.local_shape(plan.volume(name)):
            return shape
        logger.warning(
            "volumes.%s counts as nothing: its shape is known when it has a roi, lies on this machine or is ingested",
            name,
        )
        return 0, 0, 0

    return shape_of


def known_shape(plan: Plan, name: str) -> Coordinate | None:
    """A volume's shape, as ingested into data/volumes, else as configured; None where neither is there."""
    ingested = Path(layout.output("ingest").format(volume=name))
    if ingested.exists():
        z, y, x = manifest.content(ingested, forms.Extent)["raw"]["shape"]
        return z, y, x
    return plan.shape(name)


def scaled(shape: Coordinate, voxels: float) -> Coordinate:
    """The shape, grown or shrunk in all axes to about so many voxels."""
    factor = (voxels / math.prod(shape)) ** (1 / 3)
    z, y, x = (max(1, round(n * factor)) for n in shape)
    return z, y, x


def advice(plan: Plan, rows: dict[c.StageName, Row]) -> list[str]:
    """Keys of the configuration to change, with their new values, where jobs would outgrow their limits."""
    lines = []
    for stage, row in rows.items():
        asked = plan.config.stage_resources(stage)
        if row.longest > 60 * asked.runtime:
            needed = math.ceil(asked.parts * row.longest / (60 * asked.runtime))
            change = f"parts: {needed}" if row.blocks and stage != "evaluate" else f"runtime: {row.longest / 60:.0f}"
            lines.append(
                f"resources.{stage}.{change} (a job would take {row.longest / 3600:.1f} h of {asked.runtime} min)"
            )
        if row.memory_mb > asked.mem_mb:
            lines.append(f"resources.{stage}.mem_mb: {row.memory_mb:.0f} (it has {asked.mem_mb})")
    return lines


def table(rows: dict[c.StageName, Row]) -> str:
    """Aligned text."""
    lines = [
        (stage, f"{r.jobs:,}", f"{r.blocks:,}", f"{r.bytes / 1e9:,.3g}", f"{r.memory_mb / 1024:,.2f}",
         f"{r.seconds / 3600:,.3g}", f"{r.longest / 3600:,.3g}")
        for stage, r in rows.items()
    ]  # fmt: skip
    return aligned([HEADER, *lines], left=("stage",))


def run(
    target: str,
    configfile: Sequence[Path],
    costs: Path,
    throughput: Sequence[tuple[str, float]],
    voxels: Sequence[float],
) -> None:
    """Print the table as configured, and with the target's volume grown or shrunk to each number of voxels."""
    plan = Plan(c.load(*configfile))
    try:
        stage, names = layout.locate(Path(target))
    except InputError:
        stage, names = "", {}
    if stage not in TABLES or target != layout.output(stage).format(**names):
        expected = " or ".join(layout.output(table).format(volume="VOLUME") for table in TABLES)
        raise InputError(f"plan: the target must be {expected}, got {target!r}; name a table")
    volume, shape_of = names["volume"], shapes(plan)
    (plan.runs if stage == "metrics" else plan.segmented)(volume)  # an unknown volume is refused
    measured_on = c.validate(Costs, text.read(costs), str(costs))
    estimate = Estimate(plan, measured_on, dict(throughput))
    if not all(shape := shape_of(volume)):
        raise InputError(f"plan: volumes.{volume} has no shape yet; add a roi, put its source here, or ingest it")
    sized: dict[str, Coordinate] = {}
    workload = Workload(plan, lambda name: sized.get(name) or shape_of(name))
    for title, size in [("as configured", shape), *((f"{n:,.3g} voxels", scaled(shape, n)) for n in voxels)]:
        sized[volume] = size
        rows = estimate.rows(workload.tasks(volume, stage))
        sys.stdout.write(f"{volume}, {title}: {' x '.join(map(str, size))}\n{table(rows)}")
        sys.stdout.write("".join(f"  set {line}\n" for line in advice(plan, rows)) + "\n")
    sys.stdout.write(f"Measured on {measured_on.machine}.\n")
