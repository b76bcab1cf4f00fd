"""The whole chain on one tiny volume, stage after stage in this process, as the workflow's commands would run it."""

import hashlib
import json
import logging
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.stages.conftest import neurites
from tokenunify import cli, config
from tokenunify.plan.plan import Plan

CONFIG = {
    "device": "cpu",
    "storage": {"chunk_shape": [2, 12, 10], "shard_shape": [4, 24, 20], "block_shape": [4, 24, 20]},
    "volumes": {
        "t": {"sources": [{"phantom": {"seed": 1, "shape": [6, 32, 40]}}], "voxel_size_nm": [35, 8, 8]},
        "c": {"sources": [{"phantom": {"seed": 2, "shape": [6, 32, 40]}}], "voxel_size_nm": [35, 8, 8]},
        "v": {
            "sources": [
                {
                    "raw": {"path": "source/raw.npy", "format": "npy"},
                    "labels": {"path": "source/labels.npy", "format": "npy"},
                }
            ],
            "voxel_size_nm": [35, 8, 8],
        },
    },
    "datasets": {"d": {"train": ["t"], "validation": ["c"], "test": ["v"]}},
    "models": {"m": {"network": {"name": "superhuman", "filters": [2, 3]}, "dataset": "d"}},
    "finetune": {"crop": [4, 24, 24], "steps": 2, "validate_every": 2, "validation_crops": 1, "checkpoint_every": 1},
    "predict": {"padding": [1, 4, 4]},
    "segmentations": {"w": {"method": "waterz", "threshold": {"tune": [0.3, 0.6]}}},
    "evaluation": {"baseline": None, "skeleton_spacing_nm": 40, "blockings": [[4, 24, 20], [4, 24, 40]]},
}
SHAPE = (6, 32, 40)
RUN, WEIGHTS = "results/v/m/seed0", "models/m/seed0/weights.json"


@dataclass(frozen=True)
class Step:
    """A command of the chain."""

    name: str
    words: tuple[str, ...]

    def inputs(self) -> list[Path]:
        """The files that the command reads: those that it names, and the stores and tables that belong to them."""
        named = [Path(word) for word in self.words if Path(word).suffix == ".json" and Path(word).is_file()]
        stores = [path.with_suffix(".zarr") for path in named]
        stores += [path.parent / _store(path) for path in named]
        beside = [Path(path.parent, name) for path in named for name in ("lut.npy", "weights.safetensors")]
        found = {path for store in stores if store.is_dir() for path in store.rglob("*")}
        return sorted(path for path in found | set(named) | set(beside) if path.is_file() and "locks" not in path.parts)


def _store(manifest: Path) -> str:
    return str(json.loads(manifest.read_text(encoding="utf-8"))["content"].get("store", "none")).split("/")[0]


def steps() -> list[Step]:
    """The commands, in an order in which each finds its inputs."""
    plan = Plan(config.from_dict(CONFIG))
    fragments = plan.fragments_name("w")

    def step(name: str, section: str, **paths: str) -> Step:
        words = [word for key, value in paths.items() for word in (f"--{key}", *value.split())]
        return Step(name, (name.split()[0], "--config-json", section, *words))

    def blockwise(stage: str, section: str, made: str, more: dict[str, str] | None = None, **paths: str) -> list[Step]:
        part = made.replace("prepared", "part0of1")
        return [
            step(f"prepare {stage}", section, stage=stage, inputs=" ".join(paths.values()), output=made),
            step(stage, section, **paths, prepared=made, **more or {}, output=part),
        ]

    def volume(name: str) -> list[Step]:
        got, made = f"data/downloads/{name}.json", f"data/volumes/{name}.json"
        return [
            step(f"download {name}", plan.download(name), downloads="data/downloads", output=got),
            step(f"ingest {name}", plan.ingest(name), source=got, threads="1", output=made),
        ]

    raw, table, graph = "data/volumes/v.json", f"{RUN}/w/agglomerate.json", f"{RUN}/rag/{fragments}/part0of1.json"
    affinities, pieces, segments = (
        f"{RUN}/{folder}/prepared.json" for folder in ("predict", f"fragments/{fragments}", "w/relabel")
    )
    one, scores, tuned = {"threads": "1", "device": "cpu"}, f"{RUN}/w/scores.json", "models/m/seed0/tune/w.json"
    reported = f"{raw} {affinities} {pieces} {graph} {table} {segments} {scores} {WEIGHTS} {tuned}"
    return [
        *volume("t"),
        *volume("v"),
        step("finetune", plan.finetune("m"), train="data/volumes/t.json", seed="0", **one, output=WEIGHTS),
        *blockwise("predict", plan.predict("m"), affinities, raw=raw, weights=WEIGHTS, more=one),
        *blockwise("fragments", plan.fragments(fragments), pieces, affinities=affinities, volume=raw),
        step("rag", plan.rag(fragments), affinities=affinities, fragments=pieces, threads="1", output=graph),
        step("tune", plan.tune("w"), rags=graph, fragments=pieces, volumes=raw, output=tuned),
        step("agglomerate", plan.agglomerate("w"), rag=graph, tuned=tuned, output=table),
        *blockwise("relabel", plan.relabel(), segments, fragments=pieces, lut=table),
        step("evaluate", plan.evaluate(), segmentation=segments, volume=raw, output=scores),
        step("blockings", plan.blockings("w"), affinities=affinities, volume=raw, lut=table,
             output=f"{RUN}/w/blockings.json"),
        step("metrics", plan.metrics("v"), scores=scores, luts=table, predictions=affinities, weights=WEIGHTS,
             output="results/v/metrics.csv"),
        step("report", plan.report(), metrics="results/v/metrics.csv", manifests=reported,
             output="results/report.html"),
    ]  # fmt: skip


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int | None
    """None where it raised."""
    log: str

    @property
    def warnings(self) -> set[str]:
        return {line for line in self.log.splitlines() if line.startswith("WARNING")}


def call(words: tuple[str, ...]) -> Ending:
    """Run a command in this folder."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        return Ending(cli.main(list(words)), "\n".join(lines))
    except SystemExit as end:
        return Ending(int(end.code or 0), "\n".join(lines))
    except Exception:
        return Ending(None, traceback.format_exc())
    finally:
        logging.getLogger().removeHandler(handler)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in the folder: the chain's paths are relative."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@dataclass(frozen=True)
class Chain:
    """The folder as it was before each step, and what each has made."""

    before: dict[str, Path]
    steps: dict[str, Step]
    files: dict[str, tuple[Path, ...]]
    made: dict[str, str]
    warnings: dict[str, set[str]]

    @classmethod
    def run(cls, folder: Path) -> "Chain":
        now = folder / "now"
        (now / "source").mkdir(parents=True)
        labels = neurites(SHAPE)
        np.save(now / "source/labels.npy", labels)
        np.save(now / "source/raw.npy", (labels * 19 % 251).astype(np.uint8))
        chain = cls({}, {}, {}, {}, {})
        for step in steps():
            chain.steps[step.name], chain.before[step.name] = step, folder / step.name
            shutil.copytree(now, chain.before[step.name])
            with inside(now):
                there, ending = set(results()), call(step.words)
                assert ending.code == 0, f"{step.name}: {ending.log}"
                chain.files[step.name] = tuple(sorted(set(results()) - there))
                chain.made[step.name] = chain.result(step.name)
                chain.warnings[step.name] = ending.warnings
        return chain

    def result(self, name: str) -> str:
        """A digest of what the step has made in this folder; of manifests the half that is hashed downstream."""
        digest = hashlib.sha256()
        for path in self.files[name]:
            content = path.read_bytes() if path.exists() else b"missing"
            whole = path.suffix != ".json" or path.name == "zarr.json"
            digest.update(content if whole else json.dumps(json.loads(content)["content"]).encode())
        return digest.hexdigest()

    @contextmanager
    def at(self, name: str, folder: Path) -> Iterator[Step]:
        """Work in a copy of what was there before the step."""
        place = folder / "case"
        shutil.copytree(self.before[name], place)
        try:
            with inside(place):
                yield self.steps[name]
        finally:
            shutil.rmtree(place)


def results() -> Iterator[Path]:
    """What lies here, but for what commands note of their progress."""
    for path in Path().rglob("*"):
        if (
            path.is_file()
            and not {"ledger", "locks", "training"} & set(path.parts)
            and path.suffix != ".ckpt"
            and path.name != "log.csv"
        ):
            yield path
