"""The training loop: steps, validation, log and a state from which a killed run goes on as if nothing had happened."""

import copy
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning_fabric.strategies import DDPStrategy
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.learning import checkpoint, norm_statistics, trainable
from tokenunify.learning.muon import Muon
from tokenunify.learning.networks.base import Network
from tokenunify.learning.networks.recompute import recompute
from tokenunify.learning.training_log import Log, warn_if_parted
from tokenunify.store import manifest

logger = logging.getLogger(__name__)

LOG_EVERY = 10

Batch = dict[str, Any]
"""Samples stacked by name: tensors (b, ...), and what all samples of a batch share as it is."""


class Samples(Protocol):
    """Anything whose i-th sample, values by name, is a function of i."""

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class Task(nn.Module):
    """A network and what it is trained for."""

    network: Network
    weights: Mapping[str, float]
    """Weight of each loss in their sum."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name, each a mean over the targets of this share of the batch; other names are only logged."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, float]:
        """Number of targets behind each loss: means of the shares of a batch are weighed by it."""
        raise NotImplementedError

    def observe(self, means: Mapping[str, float]) -> None:
        """Take note, behind each step, of the losses' means over all of its batches and processes."""


@dataclass
class Progress:
    """What a resumed run must know besides tensors."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    best_sha256: str = ""
    seconds: float = 0.0
    attempts: int = 0
    logged: dict[str, list[float]] = field(default_factory=dict)
    """Losses of the steps since the last row of the log."""


def make_fabric(device: str, precision: str, *, batch_size: int, threads: int, all_used: bool = True) -> Fabric:
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


def learning_rate(step: int, config: c.Optimisation) -> float:
    """Linear warm-up, then constant or a cosine to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizers(task: Task, config: c.Optimisation) -> list[torch.optim.Optimizer]:
    """AdamW, which decays weights, not biases and normalisation; where it is wanted, Muon for the hidden weights."""
    hidden = hidden_weights(task) if config.optimizer == "muon" else []
    taken = set(map(id, hidden))
    parameters = [p for p in task.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    return [adamw, Muon(hidden, config.learning_rate, config.weight_decay)] if hidden else [adamw]


def hidden_weights(task: Task) -> list[Tensor]:
    """Weights that mix channels of hidden layers: neither those that read raw nor the head's."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv3d, nn.ConvTranspose3d)
    heads = tuple(f"network.{prefix}" for prefix in task.network.HEAD)
    weights = [
        module.weight
        for name, module in task.named_modules()
        if isinstance(module, layers) and not f"{name}.".startswith(heads) and module.weight.shape[1] > 1
    ]
    return [weight for weight in weights if weight.requires_grad]


def steps(
    samples: Samples, config: c.Optimisation, numbers: range, fabric: Fabric, *, threads: int
) -> Iterator[list[Batch]]:
    """This rank's batches of every step, made in background threads, in order.

    The batch_size samples of a step are dealt out to the ranks, and each rank's share to `accumulate` batches.
    """

    def make(step: int) -> list[Batch]:
        first = step * config.batch_size
        share = range(first + fabric.global_rank, first + config.batch_size, fabric.world_size)
        pieces = [share[number :: config.accumulate] for number in range(config.accumulate)]
        return [collate([samples[index] for index in piece]) for piece in pieces if piece]

    with ThreadPoolExecutor(threads) as pool:
        pending = deque(pool.submit(make, step) for step in numbers[: threads + 1])
        for step in numbers:
            batches = pending.popleft().result()
            if step + threads + 1 < numbers.stop:
                pending.append(pool.submit(make, step + threads + 1))
            yield batches


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack the samples' arrays and numbers; a text is the same in all of them."""
    first = samples[0]
    return {
        name: value if isinstance(value, str) else torch.from_numpy(np.stack([sample[name] for sample in samples]))
        for name, value in first.items()
    }


def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the running average towards the module: average = decay * average + (1 - decay) * module."""
    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
            a.lerp_(b, 1 - decay) if a.is_floating_point() else a.copy_(b)


class Training:
    """A task in training, with everything that its state on disk holds."""

    def __init__(self, fabric: Fabric, task: Task, config: c.Optimisation, folder: Path, *, stage: str):
        self.fabric, self.config, self.folder, self.stage = fabric, config, folder, stage
        self.task = task.to(memory_format=task.network.MEMORY_FORMAT)
        if config.checkpoint_activations:
            recompute(task.network)
        self.wrapped, *self.optimizers = fabric.setup(task, *make_optimizers(task, config))
        self.average = copy.deepcopy(task) if config.ema else None
        self.progress = Progress()
        if (folder / "last.ckpt").exists():
            self._restore(checkpoint.load_state(folder / "last.ckpt"))
        self.progress.attempts += 1
        self.started = time.monotonic() - self.progress.seconds

    @property
    def current(self) -> Task:
        """The weights that are validated and saved: the running average, where there is one."""
        return self.task if self.average is None else self.average

    def step(self, batches: Sequence[Batch], seed: int) -> None:
        """One step of the optimiser, over the batches of which this rank's share is made."""
        torch.manual_seed(seed << 32 | self.progress.step)  # a network's own chance is a function of seed and step
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(self.progress.step, self.config)
        totals = self._totals(batches)
        values: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            with self.fabric.no_backward_sync(self.wrapped, enabled=number < len(batches) - 1):
                losses = self._share(self.wrapped(self.fabric.to_device(batch)), batch, totals)
                self.fabric.backward(losses["loss"])
            for name, value in losses.items():
                values[name] = values.get(name, 0) + value.detach()
        self._record(values)
        for optimizer in self.optimizers:
            self._clip(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        if self.average is not None:
            done = self.progress.step
            update_average(self.average, self.task, min(self.config.ema, (1 + done) / (10 + done)))

    def _totals(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Number of targets of each loss in the whole step, over all ranks."""
        counts = [self.task.counts(batch) for batch in batches]
        names = list(counts[0])
        local = torch.tensor([[count[name] for name in names] for count in counts], dtype=torch.float64).sum(0)
        everywhere = self.fabric.all_reduce(self.fabric.to_device(local), reduce_op="sum")
        return dict(zip(names, everywhere.tolist(), strict=True))

    def _share(self, means: dict[str, Tensor], batch: Batch, totals: dict[str, float]) -> dict[str, Tensor]:
        """A batch's part of every loss, and of their weighted sum, such that ranks average to the step's true mean."""
        counts, world = self.task.counts(batch), self.fabric.world_size
        parts = {name: means[name] * (counts[name] * world / max(1.0, totals[name])) for name in means}
        weights = self.task.weights
        return {"loss": sum(weights[name] * part for name, part in parts.items() if name in weights), **parts}

    def _record(self, values: dict[str, Tensor]) -> None:
        """Note the step's losses; no step is taken on a loss that is not finite."""
        names = list(values)
        stacked = torch.stack([values[name].double() for name in names])
        means = dict(zip(names, self.fabric.all_reduce(stacked).tolist(), strict=True))
        if not math.isfinite(means["loss"]):  # on all ranks alike: all stop, or none
            raise self._diverged(f"the loss became {means['loss']} at step {self.progress.step + 1}")
        self.task.observe(means)
        for name, value in means.items():
            self.progress.logged.setdefault(name, []).append(value)

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        if self.config.clip_norm is None:
            return
        scaled = self.config.precision == "16-mixed"  # the scaler leaves out steps with gradients beyond its range
        try:
            self.fabric.clip_gradients(
                self.wrapped, optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=not scaled
            )
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            raise self._diverged(f"a gradient became infinite or nan at step {self.progress.step + 1}") from None

    def _diverged(self, what: str) -> InputError:
        return InputError(
            f"{what}: lower {self.stage}.learning_rate, lengthen {self.stage}.warmup_steps, "
            f"set {self.stage}.clip_norm, or use precision 32-true"
        )

    def renew_statistics(self, samples: Samples, *, threads: int) -> None:
        """Take stale running statistics anew from the crops of the training's last steps, which are always the same."""
        if not (layers := norm_statistics.stale(self.current.network, self.progress.step)):
            return
        last = self.config.steps
        numbers = range(max(0, last - math.ceil(norm_statistics.CROPS / self.config.batch_size)), last)
        made = steps(samples, self.config, numbers, self.fabric, threads=threads)
        with self.fabric.autocast():
            norm_statistics.renew(
                self.current, layers, (self.fabric.to_device(batch) for step in made for batch in step)
            )

    @torch.no_grad()
    def validate(self, samples: Sequence[Mapping[str, Any]]) -> float:
        """Mean loss over fixed samples, which must be finite; the weights are kept if they are the best so far."""
        self.current.eval()
        with self.fabric.autocast():
            losses = [self._loss(collate([sample])) for sample in samples]
        self.current.train()
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise self._diverged(f"the validation loss became {mean} at step {self.progress.step}")
        if mean < self.progress.best:
            self.progress.best, self.progress.best_step = mean, self.progress.step
            if self.fabric.is_global_zero:
                checkpoint.save_weights(self._best(), trainable.merged(self.current.network).state_dict())
                self.progress.best_sha256 = manifest.file_sha256(self._best())
        return mean

    def _best(self) -> Path:
        return self.folder / f"best-{self.progress.best_step}.safetensors"

    def _loss(self, batch: Batch) -> float:
        losses = self.current(self.fabric.to_device(batch))
        return sum(weight * losses[name].item() for name, weight in self.task.weights.items())

    def save(self) -> None:
        """Write the state from which a rerun goes on."""
        self.progress.seconds = time.monotonic() - self.started
        state = {
            "task": self.task.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "precision": self.fabric.strategy.precision.state_dict(),
            "progress": asdict(self.progress),
        }
        if self.fabric.is_global_zero:
            checkpoint.save_state(self.folder / "last.ckpt", state)
            for path in set(self.folder.glob("best-*.safetensors")) - {self._best()}:
                path.unlink()

    def _restore(self, state: dict) -> None:
        self.task.load_state_dict(state["task"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.progress = Progress(**state["progress"])
        logger.info("resuming behind step %d", self.progress.step)

    def facts(self) -> dict[str, Any]:
        """How it went, for the manifest's unhashed half."""
        progress, config = self.progress, self.config
        voxels = math.prod(config.crop) * config.batch_size * config.steps
        return {
            "training": f"training/{self.folder.name}",
            "device": str(self.fabric.device),
            "processes": self.fabric.world_size,
            "steps": progress.step,
            "attempts": progress.attempts,
            "seconds": round(progress.seconds, 3),
            "voxels": voxels,
            "voxels_per_second": round(voxels / progress.seconds) if progress.seconds else None,
            "torch": torch.__version__,
        }

    def weights(self) -> dict[str, Tensor]:
        """The network's weights to hand on: the best where validation chose some and the config wants them."""
        if math.isfinite(self.progress.best) and self.config.checkpoint == "best":
            if not self._best().exists() or manifest.file_sha256(self._best()) != self.progress.best_sha256:
                raise checkpoint.damaged(self._best())
            return load_file(self._best())
        weights = trainable.merged(self.current.network).state_dict()
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise self._diverged("weights became infinite or nan in the last step")
        return weights


def fit(
    training: Training,
    samples: Samples,
    validation: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    threads: int,
    columns: Sequence[str],
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train to the last step, validating, logging the columns and saving on the way."""
    fabric, config, progress = training.fabric, training.config, training.progress
    log = Log(training.folder, progress.step, columns) if fabric.is_global_zero else None
    source = steps(samples, config, range(progress.step, config.steps), fabric, threads=threads)
    training.task.train()
    bar = tqdm(source, initial=progress.step, total=config.steps, unit="step", mininterval=5, disable=log is None)
    for batches in bar:
        training.step(batches, seed)
        last = progress.step == config.steps
        due = bool(validation) and (last or progress.step % config.validate_every == 0)
        if last or due:
            training.renew_statistics(samples, threads=threads)
        loss = training.validate(validation) if due else ""
        if last or due or progress.step % LOG_EVERY == 0:
            row = _row(training, batches[0], loss)
            bar.set_postfix(loss=row["loss"], refresh=False)
            if log is not None:
                log.write(row)
                warn_if_parted(row)
        after_step()
        if last or progress.step % config.checkpoint_every == 0:
            training.save()
    if log is not None:
        log.board.close()


def _row(training: Training, batch: Batch, validation_loss: float | str) -> dict:
    """What the log may hold of the last steps: means of what was logged, and the texts of the last batch."""
    progress = training.progress
    means = {_column(training, n): round(sum(values) / len(values), 6) for n, values in progress.logged.items()}
    progress.logged.clear()
    return {
        **{name: value for name, value in batch.items() if isinstance(value, str)},
        **means,
        "step": progress.step,
        "validation_loss": round(validation_loss, 6) if validation_loss != "" else "",
        "learning_rate": training.optimizers[0].param_groups[0]["lr"],
        "seconds": round(time.monotonic() - training.started, 2),
    }


def _column(training: Training, name: str) -> str:
    """A loss of the task is told apart from their sum and from what is only logged."""
    return f"loss_{name.replace('-', '_')}" if name in training.task.weights else name
