"""What pre-training is worth with few labels: config/fib25-pretraining.yaml, mean and spread of its scores over seeds.

`python benchmarks/pretraining.py FOLDER` runs the workflow into FOLDER, or goes on where it was left; more than an hour
on two cores. The data is downloaded unless TOKENUNIFY_DATA names a folder that holds it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from tokenunify.evaluation import score_table

ROOT = Path(__file__).resolve().parents[1]
TABLE = "results/fib25-test/metrics.csv"


def compute(folder: Path, cores: str) -> Path:
    """Run the workflow; its table."""
    words = [TABLE, "--cores", cores, "--configfile", "config/fib25-pretraining.yaml", "--directory", folder.absolute()]
    subprocess.run([sys.executable, "-m", "snakemake", *map(str, words)], cwd=ROOT, check=True)
    return folder / TABLE


def lines(table: pd.DataFrame) -> list[str]:
    """One line per model and segmentation, the lowest VOI of each segmentation first."""
    groups = sorted(score_table.summary(table).groups, key=lambda group: (group.segmentation, group.mean["voi"]))
    return [
        f"{group.segmentation:<24} {group.model:<16} {group.seeds:>5}"
        + "".join(f"  {group.mean[score]:.3f} ± {group.spread[score]:.3f}" for score in ("voi", "arand"))
        for group in groups
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where data, models and results go")
    parser.add_argument("--cores", default="all")
    arguments = parser.parse_args()
    table = score_table.read(compute(arguments.folder, arguments.cores))
    print(f"{'segmentation':<24} {'model':<16} {'seeds':>5}  {'VOI, bits':<13}  ARAND")
    print("\n".join(lines(table)))


if __name__ == "__main__":
    main()
