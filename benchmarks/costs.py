"""What every stage costs, fitted to finished runs, for `tokenunify plan`; then what it would have said of these runs.

`python benchmarks/costs.py CONFIG FOLDER VOLUME [CONFIG FOLDER VOLUME ...]`: the run of a configuration in a folder, up
to the table of a volume, on this machine with nothing beside it. Writes benchmarks/costs.json.
"""

import platform
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from scipy.optimize import nnls

from tokenunify import config as c
from tokenunify.plan import estimate
from tokenunify.plan.plan import Plan
from tokenunify.plan.workload import Task, Workload
from tokenunify.store import manifest

RUN = r"results/[^/]+/(?P<model>[^/]+)/seed\d+"
PLACES = {
    "download": r"data/downloads/(?P<name>[^./][^/]*)",
    "ingest": r"data/volumes/(?P<name>[^./][^/]*)",
    "pretrain": r"models/pretrain/(?P<model>[^/]+)/seed\d+/weights",
    "finetune": r"models/(?P<model>[^/]+)/seed\d+/weights",
    "tune": r"models/[^/]+/seed\d+/tune/(?P<name>[^/]+)",
    "predict": rf"{RUN}/predict/part\d+of\d+",
    "fragments": rf"{RUN}/fragments/(?P<name>[^/]+)/part\d+of\d+",
    "rag": rf"{RUN}/rag/(?P<name>[^/]+)/part\d+of\d+",
    "agglomerate": rf"{RUN}/(?P<name>[^/]+)/agglomerate",
    "relabel": rf"{RUN}/(?P<name>[^/]+)/relabel/part\d+of\d+",
    "evaluate": rf"{RUN}/(?P<name>[^/]+)/scores",
}
"""Where each stage puts the manifest of a job."""
STORES = {"ingest": "*.zarr", "predict": "*/", "baseline": "*/", "fragments": "*/", "rag": "*/", "relabel": "*/"}
"""What a stage writes beside its manifests."""
NETWORKS = ("predict", "finetune", "pretrain")


@dataclass
class Group:
    """The jobs of a run that have one cost: what the plan expects of them, and how they went."""

    tasks: list[Task] = field(default_factory=list)
    manifests: list[Path] = field(default_factory=list)

    def total(self, key: str) -> float:
        """The sum over the jobs of what their manifests tell."""
        return sum(manifest.read(path)["run"].get(key, 0) for path in self.manifests)

    @property
    def voxels(self) -> int:
        """The sum over all tasks."""
        return sum(task.voxels for task in self.tasks)

    @property
    def size(self) -> tuple[float, float]:
        """Voxels of the largest block, and bytes of the network's maps that are in memory at once."""
        block = max(task.held_voxels for task in self.tasks)
        maps = max(estimate.measured(t.crops).activation_bytes * t.crops.at_once if t.crops else 0 for t in self.tasks)
        return block, maps

    @property
    def peak(self) -> float:
        """Bytes that a job has held at most."""
        return 2**20 * max(manifest.read(path)["run"].get("peak_mb", 0) for path in self.manifests)


class Finished:
    """A run that has ended."""

    def __init__(self, config: str, folder: str, volume: str):
        self.plan, self.folder, self.volume = Plan(c.load(config)), Path(folder), volume
        self.tasks = Workload(self.plan, self.shape_of).tasks(volume)

    def shape_of(self, volume: str) -> tuple[int, int, int]:
        """As ingested."""
        z, y, x = manifest.content(self.folder / f"data/volumes/{volume}.json")["raw"]["shape"]
        return z, y, x

    def groups(self) -> dict[tuple[str, str], Group]:
        """By stage and detail."""
        found: dict[tuple[str, str], Group] = defaultdict(Group)
        for task in self.tasks:
            found[task.stage, task.detail].tasks.append(task)
        for path in sorted(self.folder.glob("*/**/*.json")):
            for stage, pattern in PLACES.items():
                if place := re.fullmatch(pattern, str(path.relative_to(self.folder).with_suffix(""))):
                    found[self._group(stage, place.groupdict())].manifests.append(path)
        return {key: group for key, group in found.items() if group.manifests}

    def _group(self, stage: str, place: dict[str, str]) -> tuple[str, str]:
        model, name = place.get("model", ""), place.get("name", "")
        if stage == "predict" and model == c.BASELINE:
            return "baseline", ""
        if stage == "ingest":
            return stage, "phantom" if self.plan.config.volumes[name].sources[0].phantom else ""
        if stage in ("fragments", "rag"):
            return stage, name.partition("-")[0]
        if stage in ("tune", "agglomerate", "relabel"):
            settings = self.plan.segmentations[name]
            dimensions = f"{settings.fragments.dimensions}d"
            return stage, dimensions if stage == "relabel" else f"{settings.method}-{dimensions}"
        return stage, model if stage in ("pretrain", "finetune", "predict") else ""

    def wall(self, stage: str) -> pd.DataFrame:
        """Seconds and memory of the stage's jobs from their start to their end, as Snakemake has measured them."""
        found = [pd.read_csv(path, sep="\t") for path in (self.folder / "logs" / stage).glob("*.tsv")]
        return pd.concat(found) if found else pd.DataFrame({"s": []})


def written(path: Path, stage: str) -> int:
    """Bytes of a job's stores, those of all parts with the first."""
    if stage not in STORES or re.match(r"part[1-9]", path.name):
        return 0
    stores = path.parent.glob(STORES[stage]) if stage != "ingest" else [path.with_suffix(".zarr")]
    return sum(file.stat().st_size for store in stores for file in store.rglob("*") if file.is_file())


def fit(runs: Sequence[Finished]) -> estimate.Costs:
    """The costs under which the runs' totals come out."""
    groups: dict[tuple[str, str], list[Group]] = defaultdict(list)
    seen: dict[tuple[str, str], list[Finished]] = defaultdict(list)
    for run in runs:
        for (stage, detail), group in run.groups().items():
            key = stage, "" if stage in NETWORKS else detail
            groups[key].append(group)
            seen[key].append(run)
    forward = network(groups["predict", ""])
    step = network(groups["finetune", ""] + groups["pretrain", ""], forward)
    stages = {"-".join(filter(None, key)): stage_cost(key[0], alike, seen[key], step) for key, alike in groups.items()}
    return estimate.Costs(machine=machine(), stages=stages, forward=forward, step=step)


def network(groups: Sequence[Group], forward: estimate.NetworkCost | None = None) -> estimate.NetworkCost:
    """Costs of predictions, or with `forward` of trainings: seconds per operation and per byte of maps, and memory."""
    passes, times = [], []
    for group in groups:
        crops = [task.crops for task in group.tasks if task.crops]
        one = estimate.measured(crops[0])
        number = sum(c.trained if forward else c.forward for c in crops)
        validation = sum(c.forward * estimate.seconds(forward, c) for c in crops) if forward else 0
        passes.append((number * one.flops / 1e9, number * one.activation_bytes / 1e9))
        times.append(group.total("seconds" if forward else "forward_seconds") - validation)
    gflop, gb = relative(passes, times)
    return estimate.NetworkCost(seconds_per_gflop=gflop, seconds_per_gb=gb, memory=memory(groups)[2])


def stage_cost(
    stage: str, groups: Sequence[Group], runs: Sequence[Finished], step: estimate.NetworkCost
) -> estimate.StageCost:
    """Costs of a stage's jobs; for stages with a network, those outside of it."""
    runs = list(dict.fromkeys(runs))
    walls = pd.concat(run.wall(stage) for run in runs)
    in_blocks = sum(g.total("seconds") for run in runs for (s, _), g in run.groups().items() if s == stage)
    voxels = sum(group.voxels for group in groups)
    outside = {"predict": "forward_seconds", "finetune": "seconds", "pretrain": "seconds"}.get(stage, "none")
    base, per_voxel, _ = memory(groups)
    if stage in ("finetune", "pretrain"):  # trainings share what their maps take
        base = float(np.mean([group.peak - step.memory * group.size[1] for group in groups if group.peak]))
    return estimate.StageCost(
        start_seconds=(walls["s"].sum() - in_blocks) / len(walls),
        seconds=sum(g.total("seconds") - g.total(outside) for g in groups) / voxels * 1e6,
        bytes=sum(written(path, stage) for g in groups for path in g.manifests) / voxels,
        memory_mb=base / 2**20,
        memory_bytes=per_voxel,
    )


def memory(groups: Sequence[Group]) -> tuple[float, float, float]:
    """Bytes whatever the size, for each voxel of a block, and for each byte of a network's maps."""
    sizes, peaks = zip(*((group.size, group.peak) for group in groups if group.peak), strict=True)
    return relative([(1, *size) for size in sizes], peaks)


def relative(factors: Sequence[Sequence[float]], totals: Sequence[float]) -> tuple[float, ...]:
    """Costs, none negative, of each factor under which the totals come out, with the least relative errors."""
    return tuple(nnls(np.array(factors) / np.array(totals)[:, None], np.ones(len(totals)))[0].tolist())


def machine() -> str:
    """What the costs hold for."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{psutil.cpu_count()} cores of {model[1] if model else platform.processor()}"


def compare(run: Finished, costs: estimate.Costs) -> None:
    """Print what the costs say of a run beside what was measured."""
    print(f"{run.volume}: planned / measured")
    rows = estimate.Estimate(run.plan, costs, {}).rows(run.tasks)
    for stage, row in rows.items():
        walls = run.wall(stage)
        groups = [g for (s, _), g in run.groups().items() if s == stage]
        size = sum(written(path, stage) for g in groups for path in g.manifests)
        peak = max((g.peak for g in groups), default=0) / 2**20
        print(
            f"  {stage:12} jobs {row.jobs}/{len(walls)}  blocks {row.blocks}/{sum(g.total('blocks') for g in groups)}  "
            f"MB {row.bytes / 1e6:.2f}/{size / 1e6:.2f}  memory {row.memory_mb:.0f}/{peak:.0f} MiB  "
            f"seconds {row.seconds:.1f}/{walls['s'].sum():.1f}: {row.seconds / walls['s'].sum():.2f} x"
        )


def main(words: Sequence[str]) -> None:
    """Fit, write, compare."""
    runs = [Finished(*words[first : first + 3]) for first in range(0, len(words), 3)]
    costs = fit(runs)
    manifest.write_text(estimate.COSTS, costs.model_dump_json(indent=1) + "\n")
    for run in runs:
        compare(run, costs)


if __name__ == "__main__":
    main(sys.argv[1:])
