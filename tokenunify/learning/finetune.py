"""Supervised training of an affinity network on labelled volumes."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning_fabric import Fabric

from tokenunify.errors import InputError
from tokenunify.learning import (
    checkpoint,
    crops,
    initial_weights,
    loop,
    negative_pairs,
    networks,
    objectives,
    processes,
    trainable,
)
from tokenunify.learning.networks.base import Network, output_extent
from tokenunify.learning.training_log import parted_steps
from tokenunify.stages.sections import Finetune
from tokenunify.store import arrays, blockwise, manifest

logger = logging.getLogger(__name__)

VALIDATION_SEED = 0
"""The validation crops are the same for every model and seed."""
TRANSFER = "transfer.csv"
START = "starting weights"
"""Their place among the inputs; no volume has a space in its name."""
COLUMNS = ("step", "loss", "validation_loss", "learning_rate", "seconds")


def run(
    section: Finetune,
    plain: dict,
    *,
    train: list[Path],
    validation: list[Path],
    output: Path,
    pretrained: Sequence[Path] = (),
    published: Sequence[Path] = (),
    seed: int,
    threads: int,
    device: str,
) -> None:
    """Train and write `weights.json`, with weights, transfer.csv and log.csv beside it.

    The network starts from pre-trained (`weights.json` of a pre-training) or published (a download's manifest)
    weights, or from scratch where neither is given; at most one is.

    The training state is in training/<hash of everything that decides the result>/: a killed run goes on from there.
    """
    check_start(section, pretrained, published)
    samples = training_samples(section, train, seed)
    fixed = validation_samples(section, validation)
    negative = negative_pairs.check(samples)
    if fixed:
        negative_pairs.check_validation(fixed)
    fabric = processes.make_fabric(device, section.precision, batch_size=section.batch_size, threads=threads)
    fabric.launch()
    inputs = {path.stem: manifest.content_hash(path) for path in [*train, *validation]}
    for path in [*pretrained, *published]:
        inputs[START] = manifest.content_hash(path)
    identity = {**plain, "seed": seed, "train": [p.stem for p in train], "validation": [p.stem for p in validation]}
    folder = blockwise.store_folder(output.parent / "training" / output.name, "finetune", identity, inputs)
    with blockwise.lock(folder / "locks", range(1)) if fabric.is_global_zero else nullcontext():
        fabric.barrier()
        training = make_training(section, fabric, folder, seed, pretrained, published)
        workers = 1 if fabric.device.type == "cpu" else threads
        loop.fit(training, samples, fixed, seed=seed, threads=workers, columns=COLUMNS)
        if fabric.is_global_zero:
            write(section, training, output, seed=seed, inputs=inputs, negative=negative)


def training_samples(section: Finetune, train: list[Path], seed: int) -> crops.Crops:
    """Augmented random crops of the training volumes; InputError for a crop that is larger than one of them."""
    volumes = [
        crops.open_labelled(arrays.open_volume(path), sections)
        for path, sections in zip(train, section.sections, strict=True)
    ]
    output = output_extent(section.network, section.crop)
    for v in volumes:
        if any(c > n for c, n in zip(section.crop, v.shape, strict=True)):
            raise InputError(
                f"finetune.crop {list(section.crop)} does not fit into training volume {v.name}, of which "
                f"{list(v.shape)} voxels are used; {section.network.smaller_crop(section.crop, v.shape)}"
            )
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
    source = crops.Crops(volumes, section.crop, section.offsets, section.erode_labels, None, VALIDATION_SEED, output)
    return [source[index] for index in range(section.validation_crops)]


def check_start(section: Finetune, pretrained: Sequence[Path], published: Sequence[Path]) -> None:
    """Refuse weights that the section does not speak of, and a pre-training of another network."""
    expected = {"none": (0, 0), "published": (0, 1)}.get(section.start, (1, 0))
    if (found := (len(pretrained), len(published))) != expected:
        raise InputError(
            f"finetune: start {section.start!r} takes {expected[0]} of --pretrained and {expected[1]} of --published, "
            f"got {found[0]} and {found[1]} files; paste what Snakemake prints"
        )
    for path in pretrained:
        initial_weights.check_network(path, section.network.model_dump(mode="json"))
    if section.start == "none" and section.train != "all":
        logger.warning("train is %s and the network starts from scratch: what is frozen stays random", section.train)


def make_training(
    section: Finetune, fabric: Fabric, folder: Path, seed: int, pretrained: Sequence[Path], published: Sequence[Path]
) -> loop.Training:
    """The network, initialised from the seed and then from the weights given, or resumed from the folder's state."""
    torch.manual_seed(seed)
    network = networks.build(section.network.model_dump(mode="json"), section.offsets)
    if not (folder / "last.ckpt").exists():
        rows = start(section, network, pretrained, published)
        if fabric.is_global_zero:
            manifest.write_text(folder / TRANSFER, initial_weights.table(rows))
    trainable.train_only(network, section.train, section.lora)
    return loop.Training(fabric, objectives.AffinityTask(network, section), section, folder, stage="finetune")


def start(
    section: Finetune, network: Network, pretrained: Sequence[Path], published: Sequence[Path]
) -> list[initial_weights.Row]:
    """Load the weights given; a pre-training's head predicts no affinities and stays behind."""
    for path in pretrained:
        tensors, _ = checkpoint.read_weights(path)
        return initial_weights.load(network, tensors, source=path, with_head=False, mode=section.transfer)
    for path in published:
        tensors = initial_weights.read_published(path)
        return initial_weights.load(network, tensors, source=path, with_head=True, mode=section.transfer)
    return initial_weights.from_scratch(network)


def write(
    section: Finetune, training: loop.Training, output: Path, *, seed: int, inputs: dict[str, str], negative: float
) -> None:
    """Hand on weights, transfer table and log; the manifest last."""
    weights = output.with_name(checkpoint.WEIGHTS)
    checkpoint.save_weights(weights, training.weights())
    for name in (TRANSFER, "log.csv"):
        manifest.write_text(output.with_name(name), (training.folder / name).read_text(encoding="utf-8"))
    progress, network = training.progress, training.task.network
    content = {
        "weights": manifest.file_sha256(weights),
        "network": section.network.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in trainable.merged(network).parameters()),
        "finetune": section.model_dump(mode="json", exclude={"network"}),
        "seed": seed,
        "pretraining": section.start,
        "inputs": inputs,
    }
    run = {
        "trained_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "negative_pairs": round(negative, 6),
        "best_step": progress.best_step,
        "best_validation_loss": progress.best if progress.best_step else None,
        "losses_part_at_steps": parted_steps(training.folder / "log.csv"),
    }
    manifest.write(output, content, training.facts() | run)
