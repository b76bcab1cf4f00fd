"""What fuzzing does to files, values and command lines: a seeded choice among the ways in which they go wrong."""

import json
import random
from pathlib import Path
from typing import Any

from tokenunify.store import manifest

DEEP = 20_000
FOREIGN: tuple[bytes, ...] = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\x89PNG\r\n\x1a\n" + bytes(40),
    b"PK\x03\x04" + bytes(40),
    b"\x93NUMPY\x01\x00v\x00" + bytes(120),
    "größe: ω".encode("latin-1", "replace"),
    "{}".encode("utf-16"),
    b'{"content": {}, "run": {}}',
    b'{"content": null, "run": 3}',
    b"[" * DEEP,
    b'{"a": ' + 5000 * b"9" + b"}",
)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 10**18, -(10**30), 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "ω\u0000",
    "../..", "/", [], [1], [1, 2, 3], [0, 0, 0], [-1, 5, 5], [1, 2, 3, 4, 5, 6, 7], {}, {"a": 1}, [[[[]]]], ["a", None],
)  # fmt: skip
WORDS: tuple[str, ...] = (
    "",
    "x",
    "0",
    "-1",
    "1.5",
    "9" * 5000,
    "ω",
    "none.json",
    ".",
    "data",
    "n" * 300,
    "a\nb",
    "--help",
)


def damage(rng: random.Random, path: Path, others: list[Path]) -> str:
    """Damage a file in one of many ways; returns which."""
    kind = rng.choice(["flip", "flip", "cut", "grow", "foreign", "swap", "missing", "folder"])
    content = path.read_bytes()
    if kind == "flip" and content:
        place = rng.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        return f"flip at {place}"
    if kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content) or 1)])
    elif kind == "swap" and others:
        other = rng.choice(others)
        path.write_bytes(other.read_bytes())
        return f"swap with {other}"
    elif kind == "foreign":
        number = rng.randrange(len(FOREIGN))
        path.write_bytes(FOREIGN[number])
        return f"foreign {number}"
    elif kind in ("missing", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        path.write_bytes(content + rng.randbytes(9))
    return kind


def edit_json(rng: random.Random, path: Path, *, seal: bool = False) -> str:
    """Change a value of a JSON file; `seal` writes a fitting checksum, as that of a manifest made so."""
    value = json.loads(path.read_text(encoding="utf-8"))
    told = edit(rng, value)
    if seal and "checksum" in value and {"content", "run"} <= set(value):
        value["checksum"] = manifest.digest({"content": value["content"], "run": value["run"]})
    path.write_text(json.dumps(value), encoding="utf-8")
    return told


def edit(rng: random.Random, value: Any) -> str:
    """Change one value inside, remove or add one; returns what was done."""
    parent, key = rng.choice(list(_places(value)))
    kind = rng.choice(["set", "set", "set", "remove", "add", "rename", "scale", "nest"])
    path, old = f"{key!r}", parent[key]
    if kind == "remove":
        del parent[key]
    elif kind == "add" and isinstance(parent, dict):
        parent["ω x"] = rng.choice(VALUES)
    elif kind == "rename" and isinstance(parent, dict):
        parent[f"{key}s"] = parent.pop(key)
    elif kind == "scale" and isinstance(old, (int, float)):
        parent[key] = old * rng.choice([-1, 2, 0.5, 10**12])
    elif kind == "nest":
        parent[key] = [old]
    else:
        parent[key] = rng.choice(VALUES)
    return f"{kind} {path}: {str(old)[:40]} -> {str(parent)[:80]}"


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def reword(rng: random.Random, words: tuple[str, ...], files: list[str]) -> tuple[str, ...]:
    """Change one word of a command, leave it out, repeat it or swap it with another."""
    changed, place = list(words), rng.randrange(1, len(words))
    kind = rng.choice(["other", "other", "file", "remove", "repeat", "swap"])
    if kind == "other":
        changed[place] = rng.choice(WORDS)
    elif kind == "file":
        changed[place] = rng.choice(files)
    elif kind == "remove":
        del changed[place]
    elif kind == "repeat":
        changed.insert(place, changed[place])
    else:
        other = rng.randrange(1, len(words))
        changed[place], changed[other] = changed[other], changed[place]
    return tuple(changed)


def rewrite(rng: random.Random, text: str) -> bytes:
    """Change a text: a byte, a line, an indentation."""
    lines, kind = text.splitlines(), rng.choice(["byte", "line", "twice", "indent", "cut", "join"])
    place = rng.randrange(len(lines))
    if kind == "byte":
        content = bytearray(text.encode())
        content[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(content)
    if kind == "line":
        del lines[place]
    elif kind == "twice":
        lines.insert(place, lines[place])
    elif kind == "indent":
        lines[place] = rng.choice(["  ", "\t", "- ", "? ", "*a ", "&a ", "!x "]) + lines[place]
    elif kind == "cut":
        return "\n".join(lines)[: rng.randrange(len(text))].encode()
    else:
        lines[place] += " " + rng.choice(lines)
    return "\n".join(lines).encode()
