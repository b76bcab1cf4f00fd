"""Fuzzing: whatever is damaged, a command ends with a message or with the same result as before.

The cases are the same in every run of the suite. TOKENUNIFY_CASES sets their number for each target, and then
TOKENUNIFY_SEED decides them, or chance does; `make stress` tries many.
"""

import copy
import json
import os
import random
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.stages import mutations
from tests.stages.chain import CONFIG, Chain, Ending, Step, call
from tokenunify import config
from tokenunify.errors import InputError
from tokenunify.plan.plan import Plan

CASES = int(os.environ.get("TOKENUNIFY_CASES", "0"))
SEED = int(os.environ.get("TOKENUNIFY_SEED", secrets.randbelow(10**6) if CASES else 0))
pytestmark = pytest.mark.timeout(7200 if CASES else 300)

STEPS = (
    "ingest v", "prepare predict", "predict", "prepare fragments", "fragments", "rag", "tune", "agglomerate",
    "prepare relabel", "relabel", "evaluate", "blockings", "metrics", "finetune", "report",
)  # fmt: skip
PRINTING = (
    ("datasets", "--configfile", "config.json"),
    ("networks", "--configfile", "config.json"),
    ("clean", "data", "models", "results", "--dry-run"),
    ("plan", "results/v/metrics.csv", "--configfile", "config.json", "--voxels", "1e9"),
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain.run(tmp_path_factory.mktemp("chain"))


def cases(name: str, number: int) -> list[random.Random]:
    """Chances of the target's cases."""
    if CASES:
        print(f"\nTOKENUNIFY_SEED={SEED} TOKENUNIFY_CASES={CASES}: {name}")
    return [random.Random(f"{name} {SEED} {case}") for case in range(CASES or number)]


def complaint(ending: Ending) -> str:
    """What is wrong with the way a command ended, if anything."""
    if ending.code is None or "Traceback" in ending.log or "ERROR unexpected" in ending.log:
        return ending.log[-1500:]
    if ending.code == 1 and "ERROR " not in ending.log:
        return "it failed without a message"
    return ""


def damage_file(rng: random.Random, step: Step) -> str:
    files = step.inputs()
    path = rng.choice(files)
    others = [other for other in files if other.suffix == path.suffix and other != path]
    return f"{path}: {mutations.damage(rng, path, others)}"


def edit_manifest(rng: random.Random, step: Step, *, seal: bool = False) -> str:
    path = rng.choice([path for path in step.inputs() if path.suffix == ".json" and path.name != "zarr.json"])
    return f"{path}: {mutations.edit_json(rng, path, seal=seal)}"


def edit_metadata(rng: random.Random, step: Step) -> str:
    described = [path for path in step.inputs() if path.name == "zarr.json"]
    return f"{(path := rng.choice(described))}: {mutations.edit_json(rng, path)}" if described else ""


def try_file(chain: Chain, folder: Path, rng: random.Random, damage: Callable, *, strict: bool = True) -> str:
    """Damage what a command reads; returns what is then wrong with it.

    Where `strict`, it must tell of the damage if it makes something else.
    """
    name = rng.choice(STEPS)
    with chain.at(name, folder) as step:
        done, ending = damage(rng, step), call(step.words)
        wrong = complaint(ending)
        silent = ending.code == 0 and ending.warnings <= chain.warnings[name]
        if not wrong and strict and silent and chain.result(name) != chain.made[name]:
            wrong = "another result without a word"
    return f"{name}, {done}: {wrong}" if wrong else ""


def try_section(chain: Chain, folder: Path, rng: random.Random) -> str:
    """Change what a command is told; it may then make something else."""
    with chain.at(rng.choice(STEPS[:-2]), folder) as step:
        words, place = list(step.words), step.words.index("--config-json") + 1
        section = json.loads(words[place])
        done = mutations.edit(rng, section)
        words[place] = json.dumps(section)
        wrong = complaint(call(tuple(words)))
    return f"{step.name}, {done}: {wrong}" if wrong else ""


def try_words(chain: Chain, folder: Path, rng: random.Random) -> str:
    """Change the words of a command."""
    with chain.at(rng.choice(STEPS), folder) as step:
        Path("config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        words = step.words if rng.random() < 0.7 else rng.choice(PRINTING)
        files = [str(path) for path in Path().rglob("*.json")]
        words = mutations.reword(rng, words, files)
        wrong = complaint(call(words))
    return f"{words}: {wrong}" if wrong else ""


def try_configuration(_chain: Chain, folder: Path, rng: random.Random) -> str:
    """Change a configuration's values or its text; it is refused, or all that the workflow asks of it is answered."""
    path, value = folder / "config.yaml", copy.deepcopy(CONFIG)
    done = [mutations.edit(rng, value) for _ in range(rng.randrange(3))]
    text = yaml.safe_dump(value, allow_unicode=True)
    path.write_bytes(text.encode() if done else mutations.rewrite(rng, text))
    try:
        ask(Plan(config.load(path)))
    except InputError:
        pass
    except Exception as error:
        return f"{done}: {type(error).__name__} {error}\n{path.read_bytes().decode(errors='replace')}"
    return ""


def ask(plan: Plan) -> None:
    """What the rules ask."""
    for volume in plan.config.volumes:
        plan.download(volume)
        plan.ingest(volume)
    for model in plan.config.models:
        plan.finetune(model)
        plan.predict(model)
    for name in plan.segmentations:
        plan.fragments(plan.fragments_name(name))
        plan.rag(plan.fragments_name(name))
        plan.tune(name)
        plan.agglomerate(name)
        plan.blockings(name)
    for volume in plan.test_volumes:
        plan.metrics(volume)
    plan.relabel()
    plan.evaluate()
    plan.report()


TARGETS: dict[str, tuple[int, Callable[[Chain, Path, random.Random], str]]] = {
    "files": (30, partial(try_file, damage=damage_file)),
    "manifests": (30, partial(try_file, damage=edit_manifest)),
    "sealed manifests": (25, partial(try_file, damage=partial(edit_manifest, seal=True), strict=False)),
    "metadata": (15, partial(try_file, damage=edit_metadata)),
    "sections": (30, try_section),
    "command lines": (30, try_words),
    "configurations": (100, try_configuration),
}
"""What is damaged, in how many ways in a run of the suite."""


@pytest.mark.parametrize("target", TARGETS)
def test_a_message_or_the_same_result(chain: Chain, tmp_path: Path, target: str):
    number, attempt = TARGETS[target]
    wrong = [attempt(chain, tmp_path, rng) for rng in cases(target, number)]
    assert not any(wrong), f"{sum(map(bool, wrong))} of {len(wrong)}:\n" + "\n".join(filter(None, wrong))
