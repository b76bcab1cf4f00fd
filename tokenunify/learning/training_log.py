"""The log of a training: log.csv and TensorBoard."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

NOT_DRAWN = ("step", "seconds")
FAR = 10
"""Times that validation and training loss may differ before something is wrong."""


class Log:
    """log.csv and TensorBoard, cut back to the step from which a run resumes."""

    def __init__(self, folder: Path, step: int, columns: Sequence[str]):
        self.path, self.columns = folder / "log.csv", columns
        kept: list[dict[str, str]] = []
        if self.path.exists():
            with open(self.path, encoding="utf-8", errors="replace", newline="") as file:
                for row in csv.DictReader(file):
                    try:
                        at = float(row["step"])
                        for name in {"loss", "validation_loss"}.intersection(columns):
                            float(row[name] or 0)
                    except (KeyError, TypeError, ValueError):
                        continue
                    # Only a row that can have been written here: a crash may cut the last one, a disk spoil any.
                    if list(row) == list(columns) and None not in row.values() and at.is_integer() and at <= step:
                        kept.append(row)
        with open(self.path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, row: dict) -> None:
        """Append the columns that the row has; TensorBoard gets the numbers."""
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore").writerow(row)
        for name in self.columns:
            if name not in NOT_DRAWN and isinstance(row.get(name), float):
                self.board.add_scalar(name, row[name], row["step"])


def parted(row: Mapping) -> bool:
    """Whether validation and training loss of a row differ by an order of magnitude."""
    if row.get("validation_loss", "") == "":
        return False
    low, high = sorted([float(row["loss"]), float(row["validation_loss"])])
    return high > FAR * low


def warn_if_parted(row: Mapping) -> None:
    """Tell in the log that what was learned does not hold for the validation volumes, or that these are no test."""
    if parted(row):
        logger.warning(
            "step %d: validation loss %g and training loss %g differ more than %d times: compare intensities, voxel "
            "sizes and labels of the volumes, and do not trust this network",
            *(row["step"], row["validation_loss"], row["loss"], FAR),
        )


def parted_steps(path: Path) -> list[int]:
    """Steps at which a log.csv tells of losses that part."""
    with open(path, encoding="utf-8", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if parted(row)]
