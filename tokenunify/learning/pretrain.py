"""Pre-training of a network on unlabelled volumes with TokenUnify's objectives."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from tokenunify.learning import checkpoint, loop, networks, processes
from tokenunify.learning.task import Batch
from tokenunify.learning.tokens import reconstructions
from tokenunify.learning.tokens.corpus import Corpus
from tokenunify.learning.tokens.patches import PatchGrid
from tokenunify.learning.tokens.token_prediction import TokenTask
from tokenunify.stages.sections import Pretrain
from tokenunify.store import blockwise, manifest

logger = logging.getLogger(__name__)

LOSSES = ("loss_random", "loss_next", "loss_next_all")
COLUMNS = ("step", "epoch", "objective", "loss", *LOSSES, "variance_ratio", "learning_rate", "seconds")
SHOWN = 2**40
"""Number of the sample in the pictures: no training reaches it."""


def run(
    section: Pretrain, plain: dict, *, volumes: list[Path], output: Path, seed: int, threads: int, device: str
) -> None:
    """Train and write `weights.json`, with weights, log.csv and reconstructions.png beside it.

    The training state is in training/<hash of everything that decides the result>/: a killed run goes on from there.
    """
    corpus = Corpus.open(section, volumes, seed)
    grid = PatchGrid.of(section.network, section.crop, section.patch)
    samples = TokenSamples(corpus, section, grid.number, seed, corpus.statistics())
    together = section.mode == "joint" and len(section.objectives) == len(LOSSES)  # else no loss reads some parameters
    fabric = processes.make_fabric(
        device, section.precision, batch_size=section.batch_size, threads=threads, all_used=together
    )
    fabric.launch()
    inputs = {path.stem: manifest.content_hash(path) for path in volumes}
    identity = {**plain, "seed": seed, "volumes": [path.stem for path in volumes]}
    folder = blockwise.store_folder(output.parent / "training" / output.name, "pretrain", identity, inputs)
    with blockwise.lock(folder / "locks", range(1)) if fabric.is_global_zero else nullcontext():
        fabric.barrier()
        training = make_training(section, grid, fabric, folder, seed)
        draw = Pictures(training, loop.collate([samples[SHOWN]]))
        workers = 1 if fabric.device.type == "cpu" else threads
        loop.fit(training, samples, [], seed=seed, threads=workers, columns=COLUMNS, after_step=draw)
        if fabric.is_global_zero:
            write(section, training, output, seed=seed, inputs=inputs)


@dataclass(frozen=True)
class TokenSamples:
    """Crops with everything that chance decides about them; sample i is a function of (seed, i) alone."""

    corpus: Corpus
    config: Pretrain
    patches: int
    """K, per crop."""
    seed: int
    statistics: tuple[float, float]
    """Mean and standard deviation of the corpus."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample number `index`."""
        rng = np.random.default_rng((self.seed, index, 1))  # not the stream that chooses the crop
        epoch = index // self.config.batch_size * self.config.batch_size // self.config.samples_per_epoch
        low, high = self.config.mask_range
        hidden = round(rng.uniform(low, high) * self.patches)
        noise = np.zeros((1, *self.config.crop), np.float32)
        if self.config.fill not in ("zero", "learned"):
            mean, deviation = (0.0, 1.0) if self.config.fill == "noise-released" else self.statistics
            noise = rng.standard_normal(noise.shape, np.float32) * np.float32(deviation) + np.float32(mean)
        return {
            "raw": self.corpus[index],
            "noise": noise,
            "permutation": rng.permutation(self.patches),
            "gumbel": rng.gumbel(size=self.patches).astype(np.float32),
            "hidden": np.array([min(max(hidden, 1), self.patches)]),
            "cut": rng.integers(1, self.patches, size=1, endpoint=True),
            "objective": " ".join(objectives(self.config, epoch)),
            "epoch": str(epoch),
        }


def objectives(config: Pretrain, epoch: int) -> tuple[str, ...]:
    """The objectives of an epoch: all at once (joint), or one after the other, each for `period_epochs`."""
    if config.mode == "joint":
        return config.objectives
    return (config.objectives[epoch // config.period_epochs % len(config.objectives)],)


@dataclass
class Pictures:
    """Called behind each step: draws a fixed sample every `picture_every` steps and at the end."""

    training: loop.Training
    batch: Batch

    def __call__(self) -> None:
        training, step, task = self.training, self.training.progress.step, self.training.current
        assert isinstance(task, TokenTask)
        due = step % task.config.picture_every == 0 or step == task.config.steps
        if due and training.fabric.is_global_zero:
            path = training.folder / "pictures" / f"step{step:08d}.png"
            reconstructions.write(path, task, training.fabric.to_device(self.batch))


def make_training(section: Pretrain, grid: PatchGrid, fabric: Fabric, folder: Path, seed: int) -> loop.Training:
    """The network and what belongs to its task, initialised from the seed or resumed from the folder's state."""
    torch.manual_seed(seed)
    network = networks.build(section.network.model_dump(mode="json"), None)
    return loop.Training(fabric, TokenTask(network, section, grid), section, folder, stage="pretrain")


def write(section: Pretrain, training: loop.Training, output: Path, *, seed: int, inputs: dict[str, str]) -> None:
    """Hand on weights, log and picture; the manifest last."""
    weights = output.with_name(checkpoint.WEIGHTS)
    checkpoint.save_weights(weights, training.weights())
    manifest.write_text(output.with_name("log.csv"), (training.folder / "log.csv").read_text(encoding="utf-8"))
    last = training.folder / "pictures" / f"step{section.steps:08d}.png"
    manifest.replace(output.with_name("reconstructions.png"), lambda path: path.write_bytes(last.read_bytes()))
    content = {
        "weights": manifest.file_sha256(weights),
        "network": section.network.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in training.task.network.parameters()),
        "pretrain": section.model_dump(mode="json", exclude={"network"}),
        "seed": seed,
        "inputs": inputs,
    }
    manifest.write(output, content, training.facts())
