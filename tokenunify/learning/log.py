"""The log of a training: log.csv and TensorBoard."""

import csv
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

COLUMNS = ("step", "loss", "validation_loss", "learning_rate", "seconds")


class Log:
    """log.csv and TensorBoard, cut back to the step from which a run resumes."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "log.csv"
        kept = [row for row in self._rows() if int(row["step"]) <= step]
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def _rows(self) -> list[dict]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]

    def write(self, row: dict) -> None:
        """Append a row; empty values are left out of TensorBoard."""
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        for name in COLUMNS[1:4]:
            if row[name] != "":
                self.board.add_scalar(name, row[name], row["step"])
