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
    """The keys with three numbers wherever one number stands for all axes."""
    return {key: (value,) * 3 if key in PER_AXIS and type(value) is int else value for key, value in keys.items()}
