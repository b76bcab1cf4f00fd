"""The log of a training: log.csv and TensorBoard."""

import csv
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

NOT_DRAWN = ("step", "seconds")


class Log:
    """log.csv and TensorBoard, cut back to the step from which a run resumes."""

    def __init__(self, folder: Path, step: int, columns: Sequence[str]):
        self.path, self.columns = folder / "log.csv", columns
        kept = [row for row in self._rows() if int(row["step"]) <= step]
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def _rows(self) -> list[dict]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]

    def write(self, row: dict) -> None:
        """Append the columns that the row has; TensorBoard gets the numbers."""
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore").writerow(row)
        for name in self.columns:
            if name not in NOT_DRAWN and isinstance(row.get(name), float):
                self.board.add_scalar(name, row[name], row["step"])
