"""Every command in README, CONTRIBUTING and docs/ is planned or run as it is written, or marked with what it needs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import yaml

from tests.workflow.conftest import Checkout
from tests.workflow.test_walkthrough import code, merged

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"^<!-- needs a (GPU|network) -->$", flags=re.MULTILINE)
RUN_ELSEWHERE = ("tutorial.md",)
"""Pages whose commands test_walkthrough.py runs to the end."""


def commands(page: Path) -> list[str]:
    """Commands in the page's indented code and in its sentences, without comments, redirections and marked blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(MARK.pattern + r"\n\n(?: {4}.*\n)+", "", text, flags=re.MULTILINE)
    programs = r"(?:\w+=\S+ )?(?:snakemake|tokenunify|make|python) "
    lines = re.findall(rf"^(?: {{4}}| {{8}})({programs}.*)$", text.replace(" \\\n", " "), flags=re.MULTILINE)
    return [re.sub(" +(#|>) .*", "", line) for line in [*lines, *re.findall(rf"`({programs}[^`]+)`", text)]]


FOUND = {page: commands(page) for page in PAGES if page.name not in RUN_ELSEWHERE}
COMMANDS = sorted({command for found in FOUND.values() for command in found})
SNAKEMAKE = [command for command in COMMANDS if re.match(r"(\w+=\S+ )?snakemake ", command)]
OTHERS = [command for command in COMMANDS if command not in SNAKEMAKE]


@pytest.fixture(scope="module")
def documented(clone: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with the dataset that the README adds, the volume that models are applied to, and their files."""
    checkout = clone.copy(tmp_path_factory.mktemp("documented") / "tokenunify")
    added = yaml.safe_load(code(ROOT / "README.md", "Adding a dataset")[0])
    applied = yaml.safe_load(re.search(r"```yaml\n(.*?)```", (ROOT / "docs/how-to/apply.md").read_text(), re.DOTALL)[1])
    applied["datasets"]["mec"]["test"] = added["datasets"]["mec"]["test"]
    path = checkout.path / "config/config.yaml"
    path.write_text(yaml.safe_dump(merged(merged(yaml.safe_load(path.read_text()), added), applied)))
    (checkout.path / "my.h5").touch()
    with h5py.File(checkout.path / "big.h5", "w") as file:
        file.create_dataset("raw", (64, 512, 512), "u1")
    (checkout.path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks/costs.json", checkout.path / "benchmarks")
    for folder in ("results", "models", "data"):
        (checkout.path / folder).mkdir()
    return checkout


def words_of(command: str) -> tuple[dict[str, str], list[str]]:
    """Variables in front of a command, and its words, with a name for each placeholder."""
    words = shlex.split(command.replace("{volume}", "wafer4").replace("STAGE", "predict"))
    variables = dict(word.split("=", 1) for word in words if re.fullmatch(r"[A-Z_]+=.*", word))
    return variables, words[len(variables) :]


def run(checkout: Checkout, variables: dict[str, str], *words: str) -> None:
    environment = {**os.environ, "MY_DATA": str(checkout.path), **variables}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=checkout.path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", SNAKEMAKE)
def test_snakemake_plans_what_is_documented(documented: Checkout, command: str):
    variables, (program, *words) = words_of(command)
    run(documented, variables, program, *([] if "--unlock" in words else ["--dry-run"]), *words)


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_are_there(documented: Checkout, command: str):
    _, (program, *words) = words_of(command)
    if program == "make":
        subprocess.run(["make", "--dry-run", words[0]], cwd=ROOT, check=True, capture_output=True)
    elif "tokenunify" in (program, *words[:2]):
        run(documented, {}, "tokenunify", *words[words.index("tokenunify") + 1 if program == "python" else 0 :])
    elif words[0] == "-c":
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
    else:
        assert (ROOT / words[2 if words[:2] == ["-m", "pytest"] else 0]).exists()


def test_there_are_commands_to_try():
    """The patterns find what the pages hold."""
    assert len(SNAKEMAKE) >= 10
    assert {command.split()[0] for command in OTHERS} == {"make", "tokenunify", "python"}
