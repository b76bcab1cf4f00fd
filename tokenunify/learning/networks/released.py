"""Keys of the published classes' constructors: those that the networks here cover, and what to say of others."""

from collections.abc import Collection, Mapping, Sequence

from tokenunify.errors import InputError

PER_AXIS = ("kernel_size", "patch_size", "img_size")
"""Keys that take three numbers (z, y, x), or one number for all axes."""


def check_keys(keys: Mapping, known: Mapping[str, Sequence], *, free: Collection[str]) -> None:
    """Refuse an unknown key, and a value that is not among the known ones; keys in `free` take any value."""
    for key, value in keys.items():
        if key in known and value not in known[key]:
            raise InputError(f"network.{key}: expected one of {list(known[key])}, found {value!r}; correct it")
        if key not in known and key not in free:
            raise InputError(f"network.{key}: expected a key among {sorted({*known, *free})}; correct or remove it")


def per_axis(keys: Mapping) -> dict:
    """The keys with three numbers wherever one number stands for all axes; others than positive ones are refused."""
    given = {key: (value,) * 3 if type(value) is int else value for key, value in keys.items() if key in PER_AXIS}
    for key, value in given.items():
        numbers = isinstance(value, list | tuple) and all(type(n) is int and n > 0 for n in value)
        if not (numbers and len(value) == 3):
            raise InputError(f"network.{key}: expected three positive integers or one, found {keys[key]!r}; correct it")
    return {**keys, **given}
