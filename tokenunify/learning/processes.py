"""The devices and processes that a training is shared out to."""

import os
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning_fabric.strategies import DDPStrategy

from tokenunify.errors import InputError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def make_fabric(device: str, precision: Precision, *, batch_size: int, threads: int, all_used: bool = True) -> Fabric:
    """Devices and precision; several processes share a batch, with the result of one up to rounding.

    Under srun every task is a process, of CPU or GPU. Else this process starts one for each GPU, as many as divide the
    batch. With all_used=False some losses may leave parameters without a gradient.

    Batch normalisation alone tells the number of processes: each normalises by its share of the batch, and the running
    statistics are those of the first.
    """
    torch.set_num_threads(threads)
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and gpus == 0:
        raise InputError("device is cuda, but no GPU is visible to torch: use device auto or cpu, or mend the driver")
    torch.backends.cudnn.benchmark = gpus > 0
    environment: ClusterEnvironment
    if (tasks := int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))) > 1:  # srun alone sets it, not a job's script
        environment, nodes = SLURMEnvironment(auto_requeue=False), int(os.environ["SLURM_NNODES"])
        devices = tasks // nodes
    else:  # under SLURM too this process starts the others itself
        environment, nodes = LightningEnvironment(), 1
        devices = max((n for n in range(1, gpus + 1) if batch_size % n == 0), default=1)
    if batch_size % tasks:
        raise InputError(
            f"batch_size must be a multiple of the {tasks} tasks that srun started, got {batch_size}: raise it, or "
            "change the stage's nodes or gpus"
        )
    return Fabric(
        accelerator="cuda" if gpus else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(find_unused_parameters=not all_used) if devices * nodes > 1 else "auto",
        precision=precision,
        plugins=[environment],
    )
