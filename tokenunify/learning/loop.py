"""The training loop: steps, validation, log and a state from which a killed run goes on as if nothing had happened."""

import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.learning import checkpoint
from tokenunify.learning.crops import Sample
from tokenunify.learning.log import Log

logger = logging.getLogger(__name__)

LOG_EVERY = 10

Batch = tuple[Tensor, Tensor, Tensor]
"""raw (b, 1, z, y, x), targets (b, c, z, y, x), mask (b, c, z, y, x)"""
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The loss from logits, targets and mask."""


class Samples(Protocol):
    """Anything whose i-th sample is a function of i."""

    def __getitem__(self, index: int) -> Sample: ...


@dataclass
class Progress:
    """What a resumed run must know besides tensors."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    seconds: float = 0.0
    attempts: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last row of the log."""


def make_fabric(device: str, precision: str, *, batch_size: int, threads: int) -> Fabric:
    """Devices and precision; several GPUs share a batch when their number divides it."""
    torch.set_num_threads(threads)
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and gpus == 0:
        raise InputError("device is cuda, but no GPU is visible to torch: use device auto or cpu, or mend the driver")
    torch.backends.cudnn.benchmark = gpus > 0
    devices = max((n for n in range(1, gpus + 1) if batch_size % n == 0), default=1)
    return Fabric(
        accelerator="cuda" if gpus else "cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=precision,
        plugins=[LightningEnvironment()],  # this process starts the others itself, under SLURM too
    )


def learning_rate(step: int, config: c.Finetune) -> float:
    """Linear warm-up, then constant or a cosine to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(module: nn.Module, config: c.Finetune) -> torch.optim.AdamW:
    """AdamW that decays weights, not biases and normalisation."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def batches(samples: Samples, batch_size: int, steps: range, *, threads: int, rank: int, world: int) -> Iterator[Batch]:
    """This rank's share of the batch of every step, made in background threads, in order."""

    def make(step: int) -> Batch:
        share = range(step * batch_size + rank, (step + 1) * batch_size, world)
        return collate([samples[index] for index in share])

    with ThreadPoolExecutor(threads) as pool:
        pending = deque(pool.submit(make, step) for step in steps[: threads + 1])
        for step in steps:
            batch = pending.popleft().result()
            if step + threads + 1 < steps.stop:
                pending.append(pool.submit(make, step + threads + 1))
            yield batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples."""
    raw, targets, mask = (
        torch.from_numpy(np.stack([getattr(sample, name) for sample in samples])) for name in ("raw", "targets", "mask")
    )
    return raw, targets, mask


def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the running average towards the module: average = decay * average + (1 - decay) * module."""
    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
            a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)


class Logits(nn.Module):
    """A network as it is trained: its log-odds are what a call gives, since Fabric sees to precision in calls only."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, raw: Tensor) -> Tensor:
        return self.network.logits(raw)


class Training:
    """A network in training, with everything that its state on disk holds."""

    def __init__(self, fabric: Fabric, module: nn.Module, objective: Objective, config: c.Finetune, folder: Path):
        self.fabric, self.config, self.folder, self.objective = fabric, config, folder, objective
        self.module = module.to(memory_format=torch.channels_last_3d)  # the layout that low precision is fast in
        self.logits, self.optimizer = fabric.setup(Logits(module), make_optimizer(module, config))
        self.average = copy.deepcopy(module) if config.ema else None
        self.progress = Progress()
        if (folder / "last.ckpt").exists():
            self._restore(checkpoint.load_state(folder / "last.ckpt"))
        self.progress.attempts += 1
        self.started = time.monotonic() - self.progress.seconds

    @property
    def current(self) -> nn.Module:
        """The weights that are validated and saved: the running average, where there is one."""
        return self.module if self.average is None else self.average

    def step(self, batch: Batch, seed: int) -> None:
        """One step of the optimiser."""
        torch.manual_seed(seed << 32 | self.progress.step)  # a network's own chance is a function of seed and step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress.step, self.config)
        raw, targets, mask = self.fabric.to_device(batch)
        loss = self.objective(self.logits(raw), targets, mask)
        mean_loss = self.fabric.all_reduce(loss.detach()).item()  # of all ranks, which then all stop, or none
        self._check_finite(mean_loss)
        self.fabric.backward(loss)
        if self.config.clip_norm is not None:
            self.fabric.clip_gradients(self.logits, self.optimizer, max_norm=self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.losses.append(mean_loss)
        if self.average is not None:
            done = self.progress.step
            update_average(self.average, self.module, min(self.config.ema, (1 + done) / (10 + done)))

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"the loss became {loss} at step {self.progress.step + 1}: lower finetune.learning_rate, lengthen "
                "finetune.warmup_steps, set finetune.clip_norm, or use precision 32-true"
            )

    @torch.no_grad()
    def validate(self, samples: Sequence[Sample]) -> float:
        """Mean loss over fixed crops; the weights are kept if they are the best so far."""
        self.current.eval()
        with self.fabric.autocast():
            losses = [self._loss(self.fabric.to_device(collate([sample]))) for sample in samples]
        self.current.train()
        mean = sum(losses) / len(losses)
        if mean < self.progress.best:
            self.progress.best, self.progress.best_step = mean, self.progress.step
            if self.fabric.is_global_zero:
                checkpoint.save_weights(self._best(), self.current.state_dict())
        return mean

    def _best(self) -> Path:
        return self.folder / f"best-{self.progress.best_step}.safetensors"

    def _loss(self, batch: Batch) -> float:
        raw, targets, mask = batch
        return self.objective(self.current.logits(raw).float(), targets, mask).item()

    def save(self) -> None:
        """Write the state from which a rerun goes on."""
        self.progress.seconds = time.monotonic() - self.started
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "progress": asdict(self.progress),
        }
        if self.fabric.is_global_zero:
            checkpoint.save_state(self.folder / "last.ckpt", state)
            for path in set(self.folder.glob("best-*.safetensors")) - {self._best()}:
                path.unlink()

    def _restore(self, state: dict) -> None:
        self.module.load_state_dict(state["module"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.progress = Progress(**state["progress"])
        logger.info("resuming behind step %d", self.progress.step)

    def weights(self) -> dict[str, Tensor]:
        """The weights to hand on, as the config's `checkpoint` says; without validation the last."""
        if self.config.checkpoint == "best" and math.isfinite(self.progress.best):
            return load_file(self._best())
        return self.current.state_dict()


def fit(training: Training, samples: Samples, validation: Sequence[Sample], *, seed: int, threads: int) -> None:
    """Train to the last step, validating, logging and saving on the way."""
    fabric, config, progress = training.fabric, training.config, training.progress
    log = Log(training.folder, progress.step) if fabric.is_global_zero else None
    steps = range(progress.step, config.steps)
    source = batches(
        samples, config.batch_size, steps, threads=threads, rank=fabric.global_rank, world=fabric.world_size
    )
    training.module.train()
    bar = tqdm(source, initial=progress.step, total=config.steps, unit="step", mininterval=5, disable=log is None)
    for batch in bar:
        training.step(batch, seed)
        last = progress.step == config.steps
        due = last or progress.step % config.validate_every == 0
        loss = training.validate(validation) if validation and due else ""
        if last or loss != "" or progress.step % LOG_EVERY == 0:
            row = _row(training, loss)
            bar.set_postfix(loss=row["loss"], validation=loss, refresh=False)
            if log is not None:
                log.write(row)
        if last or progress.step % config.checkpoint_every == 0:
            training.save()
    if log is not None:
        log.board.close()


def _row(training: Training, validation_loss: float | str) -> dict:
    progress = training.progress
    mean = sum(progress.losses) / len(progress.losses)
    progress.losses.clear()
    return {
        "step": progress.step,
        "loss": round(mean, 6),
        "validation_loss": round(validation_loss, 6) if validation_loss != "" else "",
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "seconds": round(time.monotonic() - training.started, 2),
    }
