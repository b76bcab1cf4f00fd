"""The text of configuration files: what is refused before a value is looked at, by key and line."""

import json
import time
from pathlib import Path

import pytest

from tokenunify import config
from tokenunify.config import text
from tokenunify.errors import InputError

VOLUME = "{sources: [{phantom: {seed: 1, shape: [20, 64, 80]}}], voxel_size_nm: [35, 8, 8]}"
BOMB = "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 12))])
MERGES = BOMB.replace("[1]", "{k: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n") + "}"


def read(tmp_path: Path, content: str | bytes, name: str = "my.yaml"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return text.read(path)


def refused(tmp_path: Path, content: str | bytes, name: str = "my.yaml") -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, content, name)
    assert name in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "key", "lines"),
    [
        (f"volumes:\n  v: {VOLUME}\n  v: {VOLUME}\n", "volumes.v", (2, 3)),
        ("finetune: {steps: 1}\nmodels: {}\nfinetune: {steps: 2}\n", "finetune", (1, 3)),
        (
            "datasets:\n  d:\n    train:\n      - {volume: a,\n         volume: b}\n",
            "datasets.d.train.0.volume",
            (4, 5),
        ),
        ("a: &x {k: 1,\n k: 2}\nb: *x\n", "a.k", (1, 2)),
        ("base: &x {k: 1}\na:\n  <<: *x\n  j: 1\n  j: 2\n", "a.j", (4, 5)),
        ("a: {\"k\": 1,\n'k': 2}\n", "a.k", (1, 2)),
        ("seeds:\n  1: a\n  0x1: b\n", "seeds.1", (2, 3)),
        ("yes: 1\ntrue: 2\n", "True", (1, 2)),
    ],
)
def test_key_that_stands_twice(tmp_path: Path, content: str, key: str, lines: tuple[int, int]):
    message = refused(tmp_path, content)
    assert f"  {key}: this key stands twice, in line {lines[0]} and in line {lines[1]}" in message
    assert message.count("stands twice") == 1


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{\n\t"volumes": {"v": 1,\n\t"w": 2, "v": 3}}', "volumes.v: this key stands twice, in line 2 and in line 3"),
        ('{"a":[{"b":1,"b":1}]}', "a.0.b: this key stands twice, in line 1 and in line 1"),
        ('{"a": "{}",\n"\\u0061": 1}', "a: this key stands twice, in line 1 and in line 2"),
    ],
)
def test_key_that_stands_twice_in_json(tmp_path: Path, content: str, key: str):
    assert key in refused(tmp_path, content, "my.json")


def test_every_key_that_stands_twice_is_listed(tmp_path: Path):
    assert refused(tmp_path, "a: {k: 1, k: 2}\nb: 1\nb: 2\n").count("stands twice") == 2


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("base: &x {k: 1, j: 1}\na: {<<: *x, k: 2}\n", {"base": {"k": 1, "j": 1}, "a": {"k": 2, "j": 1}}),
        ("x: &x {k: 1}\na: {<<: [*x, {j: 2}], i: 3}\n", {"x": {"k": 1}, "a": {"k": 1, "j": 2, "i": 3}}),
        ("a: {k: 1}\nb: {k: 1}\n", {"a": {"k": 1}, "b": {"k": 1}}),
        ("'1': a\n1: b\n", {"1": "a", 1: "b"}),
        ("s: [1_000, 0x10, 0, 0.5]\nt: '010'\nu: 00010.5\n", {"s": [1000, 16, 0, 0.5], "t": "010", "u": 10.5}),
        ("\ufeffa: ä\n", {"a": "ä"}),
        ("", None),
        ("# nothing\n", None),
        ("- 1\n- 2\n", [1, 2]),
    ],
)
def test_what_is_no_mistake(tmp_path: Path, content: str, value):
    assert read(tmp_path, content) == value


def test_json_is_read_as_snakemake_reads_it(tmp_path: Path):
    """YAML 1.1 takes 1e6 for text."""
    assert read(tmp_path, '{"steps":1e6,\n\t"a/b": "\\ud83d\\ude00"}') == {"steps": 1e6, "a/b": "\U0001f600"}
    assert read(tmp_path, "{steps: 1e6}") == {"steps": "1e6"}


@pytest.mark.parametrize(("number", "meant"), [("010", 8), ("-064", -52), ("1:30", 90), ("1:30.5", 90.5), ("0_20", 16)])
def test_number_that_is_another_in_yaml(tmp_path: Path, number: str, meant: float):
    content = f"finetune:\n  crop: [4, {number}, 32]\n"
    assert f"finetune.crop.1: {number} in line 2 is {meant} in YAML" in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\nb: caf\xe9\n", "not UTF-8 text: byte 0xe9 in line 2"),
        ("a: ä\n".encode("utf-16"), "not UTF-8 text: byte 0xff in line 1"),
        (b"a: \x00\n", "is not valid YAML"),
        ("a:\n\tb: 1\n", "cannot start any token"),
        ("a: [", "is not valid YAML"),
        ("a: 1\n---\na: 2\n", "expected a single document"),
        ("? [1, 2]\n: 3\n", "unhashable key"),
        ("a: !!python/object:os.system x\n", "is not valid YAML"),
        ("a: 2026-13-45\n", "is not valid YAML: month must be in 1..12"),
        ("steps: " + 5000 * "9", "is not valid YAML: Exceeds the limit"),
        ('{"steps": ' + 5000 * "9" + "}", "is not valid YAML: Exceeds the limit"),
        (100_000 * "[", "is nested too deeply"),
        (100_000 * '{"a":', "is nested too deeply"),
        ("a: &a [*a]\n", "aliases that refer to themselves"),
        ("a: &a\n  b: *a\n", "aliases that refer to themselves"),
        (BOMB, "more than 1,000,000 values when written out"),
        (MERGES, "more than 1,000,000 values when written out"),
    ],
)
def test_unreadable_text(tmp_path: Path, content: str | bytes, words: str):
    started = time.monotonic()
    assert words in refused(tmp_path, content)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("steps: 1e6", 'finetune.steps: expected a valid integer, unable to parse string as an integer, found "1e6"'),
        ("steps: no", "finetune.steps: expected"),
        ("learning_rate: off", "finetune.learning_rate: expected"),
    ],
)
def test_words_of_yaml_are_no_numbers(tmp_path: Path, line: str, words: str):
    value = {"volumes": {}, "datasets": {}, "models": {}, "segmentations": {}}
    (tmp_path / "my.yaml").write_text(
        "\n".join([*(f"{k}: {json.dumps(v)}" for k, v in value.items()), f"finetune: {{{line}}}"])
    )
    with pytest.raises(InputError) as error:
        config.load(tmp_path / "my.yaml")
    assert words in str(error.value)


def test_text_that_is_a_small_number_is_taken(tmp_path: Path):
    """1e-4 is text in YAML 1.1, and means what it looks like."""
    content = f"volumes: {{v: {VOLUME}}}\ndatasets: {{d: {{train: [v]}}}}\nmodels: {{}}\nsegmentations: {{}}\n"
    (tmp_path / "my.yaml").write_text(content + "finetune: {learning_rate: 1e-4}\n")
    assert config.load(tmp_path / "my.yaml").finetune.learning_rate == 1e-4
