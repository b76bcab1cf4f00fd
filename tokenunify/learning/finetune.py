"""Supervised training of an affinity network on labelled volumes."""

import logging
from contextlib import nullcontext
from math import prod
from pathlib import Path

import torch
from lightning_fabric import Fabric

from tokenunify import arrays, blockwise, manifest
from tokenunify.learning import checkpoint, crops, loop, networks, objectives
from tokenunify.learning.networks.base import output_extent
from tokenunify.stages import Finetune

logger = logging.getLogger(__name__)

VALIDATION_SEED = 0
"""The validation crops are the same for every model and seed."""
COLUMNS = ("step", "loss", "validation_loss", "learning_rate", "seconds")


def run(
    section: Finetune,
    plain: dict,
    *,
    train: list[Path],
    validation: list[Path],
    output: Path,
    seed: int,
    threads: int,
    device: str,
) -> None:
    """Train and write `weights.json`, with weights, transfer.csv and log.csv beside it.

    The training state is in training/<hash of everything that decides the result>/: a killed run goes on from there.
    """
    samples = training_samples(section, train, seed)
    fixed = validation_samples(section, validation)
    fabric = loop.make_fabric(device, section.precision, batch_size=section.batch_size, threads=threads)
    fabric.launch()
    inputs = {path.stem: manifest.content_hash(path) for path in [*train, *validation]}
    identity = {**plain, "seed": seed, "train": [p.stem for p in train], "validation": [p.stem for p in validation]}
    folder = blockwise.store_folder(output.parent / "training" / output.name, "finetune", identity, inputs)
    with blockwise.lock(folder / "locks", range(1)) if fabric.is_global_zero else nullcontext():
        fabric.barrier()
        training = make_training(section, fabric, folder, seed)
        workers = 1 if fabric.device.type == "cpu" else threads
        loop.fit(training, samples, fixed, seed=seed, threads=workers, columns=COLUMNS)
        if fabric.is_global_zero:
            write(section, training, output, seed=seed, inputs=inputs)


def training_samples(section: Finetune, train: list[Path], seed: int) -> crops.Crops:
    """Augmented random crops of the training volumes."""
    volumes = [
        crops.open_labelled(arrays.open_volume(path), sections)
        for path, sections in zip(train, section.sections, strict=True)
    ]
    output = output_extent(section.network, section.crop)
    return crops.Crops(
        crops.cached(volumes), section.crop, section.offsets, section.erode_labels, section.augment, seed, output
    )


def validation_samples(section: Finetune, validation: list[Path]) -> list[dict]:
    """The fixed crops of the validation volumes; none without such volumes."""
    volumes = [crops.open_labelled(arrays.open_volume(path)) for path in validation]
    if not volumes:
        logger.warning("no validation volumes: the last weights are kept, whatever finetune.checkpoint says")
        return []
    output = output_extent(section.network, section.crop)
    source = crops.Crops(
        volumes, section.crop, section.offsets, section.erode_labels, None, VALIDATION_SEED, output, must_fit=False
    )
    return [source[index] for index in range(section.validation_crops)]


def make_training(section: Finetune, fabric: Fabric, folder: Path, seed: int) -> loop.Training:
    """The network, initialised from the seed or resumed from the folder's state."""
    torch.manual_seed(seed)
    network = networks.build(section.network.model_dump(mode="json"), section.offsets)
    return loop.Training(fabric, objectives.AffinityTask(network, section), section, folder, stage="finetune")


def write(section: Finetune, training: loop.Training, output: Path, *, seed: int, inputs: dict[str, str]) -> None:
    """Hand on weights, transfer table and log; the manifest last."""
    weights = output.with_name(checkpoint.WEIGHTS)
    checkpoint.save_weights(weights, training.weights())
    manifest.write_text(output.with_name("transfer.csv"), checkpoint.transfer_table(training.task.network))
    manifest.write_text(output.with_name("log.csv"), (training.folder / "log.csv").read_text())
    progress = training.progress
    content = {
        "weights": manifest.file_sha256(weights),
        "network": section.network.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in training.task.network.parameters()),
        "finetune": section.model_dump(mode="json", exclude={"network"}),
        "seed": seed,
        "pretraining": "none",
        "inputs": inputs,
    }
    voxels = prod(section.crop) * section.batch_size * section.steps
    run = {
        "training": f"training/{training.folder.name}",
        "device": str(training.fabric.device),
        "steps": progress.step,
        "best_step": progress.best_step,
        "best_validation_loss": progress.best if progress.best_step else None,
        "attempts": progress.attempts,
        "seconds": round(progress.seconds, 3),
        "voxels": voxels,
        "voxels_per_second": round(voxels / progress.seconds) if progress.seconds else None,
        "torch": torch.__version__,
    }
    manifest.write(output, content, run)
