"""A copy of the repository in which the tiny configuration has run once; tests work on copies of it."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

TARGETS = ("results/tiny/metrics.csv", "results/report.html")
SOURCES = ("Snakefile", "README.md", "config", "envs", "profiles", "slurm", "tokenunify", "workflow", "tests/config")


@dataclass(frozen=True)
class Job:
    """A job as Snakemake prints it."""

    rule: str
    wildcards: str
    reason: str


@dataclass(frozen=True)
class Checkout:
    """A clone in which Snakemake runs as a user would run it."""

    path: Path

    def snakemake(self, *words, check: bool = True, **options) -> subprocess.CompletedProcess:
        """Run Snakemake on two cores with the clone's tiny.yaml; the output of a failed run is in the assertion."""
        done = subprocess.run(
            self.command(*words), cwd=self.path, capture_output=True, text=True, timeout=1200, **options
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr + self.logs()
        return done

    def command(self, *words) -> list[str]:
        return [
            sys.executable,
            "-m",
            "snakemake",
            *map(str, words),
            "--cores",
            "2",
            "--configfile",
            "tests/config/tiny.yaml",
        ]

    def planned(self, *targets: str) -> list[Job]:
        """The jobs that a dry run lists."""
        return listed(self.snakemake(*(targets or TARGETS), "--dry-run").stdout)

    @property
    def config(self) -> Path:
        return self.path / "tests/config/tiny.yaml"

    def edit(self, change) -> None:
        """Apply `change` to the parsed configuration and write it back."""
        value = yaml.safe_load(self.config.read_text())
        change(value)
        self.config.write_text(yaml.safe_dump(value, sort_keys=False))

    def copy(self, path: Path) -> "Checkout":
        """A copy with results, records and modification times."""
        shutil.copytree(self.path, path, symlinks=True)
        return Checkout(path)

    def logs(self) -> str:
        """The ends of the stages' logs."""
        return "\n".join(f"== {p}\n{p.read_text()[-1500:]}" for p in sorted(self.path.glob("logs/*/*.log")))


def listed(output: str) -> list[Job]:
    """The jobs in Snakemake's output."""
    pattern = r"^(?:local)?rule (\w+):\n((?:    .*\n)*)"
    return [
        Job(rule, _field(body, "wildcards"), _field(body, "reason"))
        for rule, body in re.findall(pattern, output, flags=re.MULTILINE)
        if rule != "all"
    ]


def _field(body: str, name: str) -> str:
    found = re.search(rf"^    {name}: (.*)$", body, flags=re.MULTILINE)
    return found.group(1) if found else ""


def executable(path: Path, commands: str) -> Path:
    """Write a shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The repository's sources, nothing run yet."""
    path = tmp_path_factory.mktemp("clone") / "tokenunify"
    for name in SOURCES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, path / name)
    return Checkout(path)


@pytest.fixture(scope="session")
def finished(clone: Checkout, session_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The tiny configuration, run to the end without disturbance, by the first worker that asks."""
    path = session_folder / "finished"
    with FileLock(session_folder / "finished.lock"):
        if not path.exists():
            checkout = clone.copy(tmp_path_factory.mktemp("finished") / "tokenunify")
            checkout.snakemake(*TARGETS)
            checkout.path.rename(path)
    return Checkout(path)
