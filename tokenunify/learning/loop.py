"""The training loop: steps, validation, log and a state from which a killed run goes on as if nothing had happened."""

import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from tokenunify import config as c
from tokenunify.errors import InputError
from tokenunify.learning import checkpoint, norm_statistics, trainable
from tokenunify.learning.networks.recompute import recompute
from tokenunify.learning.optimisation import learning_rate, make_optimizers, update_average
from tokenunify.learning.task import Batch, Samples, Task
from tokenunify.learning.training_log import Log, warn_if_parted
from tokenunify.store import manifest

logger = logging.getLogger(__name__)

LOG_EVERY = 10


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


class Training:
    """A task in training, with everything that its state on disk holds."""

    def __init__(self, fabric: Fabric, task: Task, config: c.Optimisation, folder: Path, *, stage: str):
        self.fabric, self.config, self.folder, self.stage = fabric, config, folder, stage
        self.task = task.to(memory_format=task.network.MEMORY_FORMAT)  # type: ignore[call-overload]  # torch's types lack it
        if config.checkpoint_activations:
            recompute(task.network)
        self.wrapped, *self.optimizers = fabric.setup(task, *make_optimizers(task, config))
        self.average = copy.deepcopy(task) if config.ema else None
        self.progress = Progress()
        if (folder / "last.ckpt").exists():
            state = checkpoint.load_state(folder / "last.ckpt")
            self.task.load_state_dict(state["task"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(held)
            fabric.strategy.precision.load_state_dict(state["precision"])
            self.progress = Progress(**state["progress"])
            logger.info("resuming behind step %d", self.progress.step)
        self.progress.attempts += 1
        self.started = time.monotonic() - self.progress.seconds

    @property
    def current(self) -> Task:
        """The weights that are validated and saved: the running average, where there is one."""
        return self.task if self.average is None else self.average

    def step(self, batches: Sequence[Batch], seed: int) -> None:
        """One step of the optimiser, over the batches of which this rank's share is made."""
        progress, config, weights = self.progress, self.config, self.task.weights
        torch.manual_seed(seed << 32 | progress.step)  # a network's own chance is a function of seed and step
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(progress.step, config)
        counts = [self.task.counts(batch) for batch in batches]
        targets = torch.tensor([[count[name] for name in counts[0]] for count in counts], dtype=torch.float64).sum(0)
        totals = self._over_ranks(list(counts[0]), targets, "sum")
        values: dict[str, Tensor] = {}
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            with self.fabric.no_backward_sync(self.wrapped, enabled=number < len(batches) - 1):
                means = self.wrapped(self.fabric.to_device(batch))
                # The batch's part of every loss, such that the ranks average to the step's true mean.
                share = {name: count[name] * self.fabric.world_size / max(1.0, totals[name]) for name in means}
                parts = {name: mean * share[name] for name, mean in means.items()}
                loss = sum(weights[name] * part for name, part in parts.items() if name in weights)
                self.fabric.backward(loss)
            for name, value in {"loss": loss, **parts}.items():
                values[name] = values.get(name, 0) + value.detach()
        losses = self._over_ranks(list(values), torch.stack([value.double() for value in values.values()]), "mean")
        if not math.isfinite(losses["loss"]):  # on all ranks alike: all stop, or none
            raise self._diverged(f"the loss became {losses['loss']} at step {progress.step + 1}")
        self.task.observe(losses)
        for name, value in losses.items():
            progress.logged.setdefault(name, []).append(value)
        for optimizer in self.optimizers:
            if config.clip_norm is not None:
                norm = self.fabric.clip_gradients(
                    self.wrapped, optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
                )
                scaled = config.precision == "16-mixed"  # the scaler leaves out steps with gradients beyond its range
                if norm is not None and not scaled and not norm.isfinite():
                    raise self._diverged(f"a gradient became infinite or nan at step {progress.step + 1}")
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        if self.average is not None and config.ema is not None:
            update_average(self.average, self.task, min(config.ema, (1 + progress.step) / (10 + progress.step)))

    def _over_ranks(self, names: Sequence[str], values: Tensor, how: str) -> dict[str, float]:
        """Values by name, their sum or mean over all ranks."""
        reduced = self.fabric.all_reduce(self.fabric.to_device(values), reduce_op=how)
        assert isinstance(reduced, Tensor)
        return dict(zip(names, reduced.tolist(), strict=True))

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
            means = [self.current(self.fabric.to_device(collate([sample]))) for sample in samples]
        self.current.train()
        weights = self.task.weights
        losses = [sum(weight * found[name].item() for name, weight in weights.items()) for found in means]
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
        chosen = isinstance(self.config, c.Finetune) and self.config.checkpoint == "best"
        if chosen and math.isfinite(self.progress.best):
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
    every = config.validate_every if isinstance(config, c.Finetune) and validation else None
    source = steps(samples, config, range(progress.step, config.steps), fabric, threads=threads)
    training.task.train()
    bar = tqdm(source, initial=progress.step, total=config.steps, unit="step", mininterval=5, disable=log is None)
    for batches in bar:
        training.step(batches, seed)
        last = progress.step == config.steps
        due = every is not None and (last or progress.step % every == 0)
        if last or due:
            training.renew_statistics(samples, threads=threads)
        loss = training.validate(validation) if due else None
        if last or due or progress.step % LOG_EVERY == 0:
            row: dict[str, Any] = {name: value for name, value in batches[0].items() if isinstance(value, str)}
            for name, values in progress.logged.items():  # losses are told apart from their sum and what is only logged
                column = f"loss_{name.replace('-', '_')}" if name in training.task.weights else name
                row[column] = round(sum(values) / len(values), 6)
            progress.logged.clear()
            row |= {
                "step": progress.step,
                "validation_loss": "" if loss is None else round(loss, 6),
                "learning_rate": training.optimizers[0].param_groups[0]["lr"],
                "seconds": round(time.monotonic() - training.started, 2),
            }
            bar.set_postfix(loss=row["loss"], refresh=False)
            if log is not None:
                log.write(row)
                warn_if_parted(row)
        after_step()
        if last or progress.step % config.checkpoint_every == 0:
            training.save()
    if log is not None:
        log.board.close()
