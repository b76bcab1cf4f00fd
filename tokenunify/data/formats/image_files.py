"""Images that are the sections of one volume: those that a folder or pattern names, their order, and gaps in it."""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import accumulate, chain, pairwise, product, takewhile
from pathlib import Path, PurePosixPath

from tokenunify.data import file_kind
from tokenunify.errors import InputError

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
DIGITS = re.compile(r"(\d+)")
FEW = 4
"""Gaps, and names of files, that a message lists."""


def image_files(path: str | Path) -> list[Path]:
    """Images of a folder, or of a glob pattern, in natural order (2 before 10) of their paths, folder by folder.

    `**` matches any number of folders. A name that exists is meant as it stands, brackets too. Raises InputError where
    there are none, and for two that are one section: s1.png beside s01.png or s1.tif.
    """
    if os.path.isdir(path):
        found = list(Path(path).iterdir())
    else:
        parts = Path(path).parts
        number = sum(1 for _ in takewhile(os.path.lexists, accumulate(parts, os.path.join)))
        fixed, rest = os.path.join(".", *parts[:number]), parts[number:]
        paths = _matching(fixed, rest) or _matching(fixed, tuple(part.replace("[", "[[]") for part in rest))
        found = [Path(place) for place in paths]
    named = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    files = sorted((file for file in named if file_kind.is_file(file) or not file.is_dir()), key=natural)
    if not files:
        raise InputError(
            f"{path} has no images ({', '.join(IMAGE_SUFFIXES)}); give a folder or a pattern such as a/*.png or "
            "a/**/*.png"
        )
    for one, two in pairwise(files):
        if natural(one.with_suffix("")) == natural(two.with_suffix("")):
            raise InputError(
                f"{one} and {two} have one number: expected one image per section; remove one of them or give a "
                "narrower pattern"
            )
    return files


def nested(folder: Path) -> str:
    """The name of all images of a folder and of the folders in it: the folder itself, or a pattern."""
    return f"{folder}/**/*" if any(place.is_dir() for place in folder.iterdir()) else str(folder)


def natural(path: Path) -> list:
    """Sort key, part by part: numbers count by value, and what is in a folder comes before the files beside it."""
    *folders, name = path.parts
    return [*((0, _words(folder)) for folder in folders), (1, _words(name))]


def _words(text: str) -> list:
    """Text and numbers in turn."""
    return [int(word) if index % 2 else word for index, word in enumerate(DIGITS.split(text))]


def is_glob(text: str) -> bool:
    """Whether the text is a pattern for many files."""
    return any(sign in text for sign in "*?[")


def meant(names: Iterable[str], pattern: str) -> str:
    """The pattern; where a file or folder has it as its name, its brackets are escaped."""
    escaped = pattern.replace("[", "[[]")
    is_name = any(matches(name, form) for name in names for form in (escaped, f"{escaped}/*"))
    return escaped if is_name else pattern


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a file of an archive or repository: * also matches /, and **/ no folder as well."""
    pieces = pattern.split("**/")
    ways = product(*[("", "**/")] * (len(pieces) - 1))
    return any(fnmatchcase(name, "".join(chain(*zip(pieces, [*stars, ""], strict=True)))) for stars in ways)


def fixed_folder(pattern: str) -> PurePosixPath:
    """The folder of all files that match the pattern, by its first parts, which are no pattern."""
    return PurePosixPath(*takewhile(lambda part: not is_glob(part), PurePosixPath(pattern).parent.parts))


def _matching(folder: str, parts: tuple[str, ...]) -> set[str]:
    """The paths in a folder that match the parts of a pattern.

    `glob` alone never ends where a link leads back to a folder above it: `**` is handled here.
    """
    head = tuple(takewhile(lambda part: part != "**", parts))
    found = glob.glob(os.path.join(glob.escape(folder), *head))
    if len(head) == len(parts):
        return set(found)
    rest = parts[len(head) + 1 :] or ("*",)
    return {path for base in found for inner in _folders(base, ()) for path in _matching(inner, rest)}


def _folders(folder: str, passed: tuple[str, ...]) -> Iterator[str]:
    """The folder and those in it that are not hidden; none is entered from inside itself."""
    real = os.path.realpath(folder)
    if not os.path.isdir(folder) or real in passed:
        return
    yield folder
    for entry in os.scandir(folder):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _folders(entry.path, (*passed, real))


def gaps(files: list[Path]) -> list[str]:
    """Numbers that the names leave out, as `s{4, 7-9}`: of names that differ in one number alone, number by number."""
    root = os.path.commonpath([file.parent for file in files])
    groups: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for file in files:
        words = DIGITS.split(file.relative_to(root).with_suffix("").as_posix())
        groups[tuple(words[::2])].append(words)
    found = []
    for names in groups.values():
        for place in range(1, len(names[0]), 2):
            alike: dict[tuple, list[list[str]]] = defaultdict(list)
            for words in names:
                alike[tuple(map(int, words[1:place:2]))].append(words)
            for same in alike.values():
                numbers = sorted({int(words[place]) for words in same})
                runs = [(one + 1, two - 1) for one, two in pairwise(numbers) if two - one > 1]
                if runs:
                    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:FEW]]
                    left_out = ", ".join(shown) + (", ..." if len(runs) > FEW else "")
                    before, after = "".join(same[0][:place]), "".join(same[0][place + 1 :][:1])
                    found.append(f"{before}{{{left_out}}}{after}")
    return found
