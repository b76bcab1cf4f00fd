"""A folder with small volumes and stores, and the stages run on them as the workflow does."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tokenunify import affinities, cli, config
from tokenunify.stages import sections
from tokenunify.stages.table import STAGES
from tokenunify.store import arrays, manifest

SHAPE = (10, 40, 60)
VOXEL_SIZE = (40.0, 8.0, 4.0)
CHUNK, SHARD = (2, 11, 30), (2, 22, 30)


def neurites(shape=SHAPE, *, count: int = 12, seed: int = 0) -> np.ndarray:
    """Labels 1..count: tubes around points that drift from section to section; uint64."""
    random = np.random.default_rng(seed)
    points = random.random((count, 2)) * shape[1:]
    y, x = np.indices(shape[1:])
    labels = np.empty(shape, np.uint64)
    for section in labels:
        section[:] = 1 + np.argmin([(y - p) ** 2 + (x - q) ** 2 for p, q in points], axis=0)
        points += random.normal(0, 0.7, points.shape)
    return labels


def eroded_affinities(labels: np.ndarray) -> np.ndarray:
    return affinities.targets(labels, config.NEAREST, "background", erode=True)[0]


@dataclass
class Workspace:
    """A folder as the workflow sees it; every method returns the path of what it made."""

    folder: Path
    block_shape: tuple[int, int, int] = SHARD
    shard_shape: tuple[int, int, int] = SHARD
    chunk_shape: tuple[int, int, int] = CHUNK
    parts: int = 1

    def volume(
        self,
        name: str,
        labels: np.ndarray | None,
        raw: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        *,
        origin: tuple[int, int, int] = (0, 0, 0),
        source_ids: np.ndarray | None = None,
    ) -> Path:
        """A volume whose first voxel is `origin` in its source, where label n has the id source_ids[n]."""
        shape = (labels if raw is None else raw).shape
        path = self.folder / "data" / "volumes" / f"{name}.json"
        held = {"raw": np.full(shape, 128, np.uint8) if raw is None else raw, "labels": labels, "mask": mask}
        for key, values in held.items():
            if values is not None:
                dtype, place = str(values.dtype), path.with_suffix(".zarr") / key / "0"
                grid = {"chunk_shape": self.chunk_shape, "shard_shape": self.shard_shape}
                arrays.create(place, shape=shape, dtype=dtype, attributes={}, **grid)[:] = values
        described = {k: None if v is None else {"shape": shape, "dtype": str(v.dtype)} for k, v in held.items()}
        offset = [o * size for o, size in zip(origin, VOXEL_SIZE, strict=True)]
        fixed = {"voxel_size_nm": VOXEL_SIZE, "offset_nm": offset, "zero": "background"}
        if source_ids is not None:
            fixed["config"] = {"label_ids": "dense"}
            arrays.zarr.create_array(str(path.with_suffix(".zarr") / "labels" / "original_ids"), data=source_ids)
        manifest.write(path, {**described, **fixed})
        return path

    def affinities(self, volume: Path, values: np.ndarray) -> Path:
        """A finished store of uint8 affinities (3, z, y, x), as predict leaves it."""
        prepared = self.prepare("baseline", self.section("baseline", sigma_nm=0.0), [volume], "predict")
        arrays.zarr.open_array(str(arrays.prepared_store(prepared)), mode="r+")[:] = values
        return prepared

    def perfect(self, volume: Path, labels: np.ndarray) -> Path:
        """Affinities of the labels themselves, with borders in each section."""
        return self.affinities(volume, arrays.to_uint8(eroded_affinities(labels)))

    def section(self, stage: str, **values) -> str:
        grid = {name: getattr(self, name) for name in ("chunk_shape", "shard_shape", "block_shape")}
        known = sections.SECTIONS[stage].model_fields
        return sections.to_json(
            stage, sections.SECTIONS[stage](**{k: v for k, v in grid.items() if k in known}, **values)
        )

    def prepare(self, stage: str, section: str, inputs: list[Path], name: str) -> Path:
        output = self.folder / name / "prepared.json"
        self.call("prepare", "--stage", stage, "--config-json", section, "--inputs", *inputs, "--output", output)
        return output

    def call(self, *words) -> None:
        cli.run(cli.parser().parse_args([str(word) for word in words]))

    def array(self, stage: str, section: str, inputs: dict[str, Path], *, name: str | None = None) -> Path:
        """Run prepare and all parts of a block-wise stage with an array."""
        prepared = self.prepare(stage, section, list(inputs.values()), name or stage)
        self.run_parts(stage, section, {**inputs, "prepared": prepared}, prepared.parent)
        return prepared

    def run_parts(self, stage: str, section: str, inputs: dict[str, Path], folder: Path) -> Path:
        outputs = [folder / f"part{part}of{self.parts}.json" for part in range(self.parts)]
        words = [word for name, path in inputs.items() for word in (f"--{name}", path)]
        words += ["--threads", 2] if "threads" in STAGES[stage].numbers else []
        for part, output in enumerate(outputs):
            options = ["--config-json", section, *words, "--output", output, "--part", f"{part}/{self.parts}"]
            self.call(stage, *options)
        return outputs[0]

    def fragments(self, predicted: Path, **settings) -> Path:
        """Of the folder's only volume."""
        (volume,) = (self.folder / "data" / "volumes").glob("*.json")
        inputs = {"affinities": predicted, "volume": volume}
        return self.array("fragments", self.section("fragments", **settings), inputs)

    def rag(self, predicted: Path, fragments: Path, **settings) -> Path:
        inputs = {"affinities": predicted, "fragments": fragments}
        return self.run_parts("rag", self.section("rag", **settings), inputs, self.folder / "rag")

    def agglomerate(self, rag: Path, tuned: Path | None = None, **segmentation) -> Path:
        output = self.folder / "segmentation" / "agglomerate.json"
        section = self.section("agglomerate", segmentation=segmentation)
        tuning = ["--tuned", tuned] if tuned else []
        self.call("agglomerate", "--config-json", section, "--rag", rag, "--output", output, *tuning)
        return output

    def relabel(self, fragments: Path, lut: Path) -> Path:
        return self.array("relabel", self.section("relabel"), {"fragments": fragments, "lut": lut})

    def evaluate(self, segmentation: Path, volume: Path, **settings) -> Path:
        output = self.folder / "segmentation" / "scores.json"
        default = {"erode_labels": False, "ignore_label": 0, "skeleton_spacing_nm": None}
        section = self.section("evaluate", **{**default, **settings})
        words = ["--config-json", section, "--segmentation", segmentation, "--volume", volume, "--output", output]
        self.call("evaluate", *words)
        return output

    def segment(self, predicted: Path, **segmentation) -> Path:
        """From affinities to a segmentation's prepared.json."""
        chosen = {"method": "waterz", **segmentation}
        settings = chosen.pop("fragments", {})
        fragments = self.fragments(predicted, **settings)
        histograms = chosen.get("score", "").startswith("hist")
        lut = self.agglomerate(self.rag(predicted, fragments, histograms=histograms), **chosen)
        return self.relabel(fragments, lut)

    def copy(self, folder: Path, **changes) -> "Workspace":
        """The same volumes and affinities in another folder, with other blocks or parts."""
        for name in ("data", "predict"):
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, folder / name)
        return replace(self, folder=folder, **changes)

    def whole(self, shape: tuple[int, int, int]) -> None:
        """Use one block, one shard and one chunk of that shape."""
        self.block_shape = self.shard_shape = self.chunk_shape = shape


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def labels() -> np.ndarray:
    return neurites()


@pytest.fixture(scope="session")
def make_labels():
    return neurites
