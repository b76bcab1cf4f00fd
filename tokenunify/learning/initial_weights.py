"""Start a network from other weights, and account for every tensor of both sides."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tokenunify.errors import InputError
from tokenunify.learning import checkpoint, published_weights
from tokenunify.learning.networks.base import Network
from tokenunify.store import download_forms, forms, manifest

COLUMNS = ("name", "shape", "status", "source_name", "source_shape", "reason")
"""Columns of transfer.csv; status: loaded, new (drawn by the seed), skipped (does not fit), unused (of the source)."""
Row = dict[str, str]


def check_network(pretrained: Path, network: dict) -> None:
    """Refuse a pre-training whose network is not the model's; the message holds every key that differs."""
    other = manifest.content(pretrained, forms.Network)["network"]
    keys = sorted(key for key in {*network, *other} if network.get(key) != other.get(key))
    if keys:
        lines = [
            f"  network.{key}: {network.get(key)} in the model, {other.get(key)} in the pre-training" for key in keys
        ]
        raise InputError(
            f"{pretrained} holds another network than the model's:\n" + "\n".join(lines) + "\ngive the model the "
            "network of its pre-training, or another pre-training"
        )


def read_published(path: Path) -> dict[str, Tensor]:
    """Tensors by published name, from the file that a download's manifest names.

    Raises InputError for a file that is not the recorded one, or that `published.read` refuses.
    """
    found = manifest.read(path, download_forms.Published)
    file = Path(found["run"]["weights"])
    again = f"delete {path} and run snakemake again"
    if not file.exists():
        raise InputError(f"{file} does not exist any more: put it back, or {again}")
    expected, sha256 = found["content"]["weights"]["sha256"], manifest.file_sha256(file)
    if sha256 != expected:
        raise InputError(f"{file} has changed: expected sha256 {expected} as in {path}, found {sha256}: {again}")
    return published_weights.read(file)


def load(network: Network, tensors: Mapping[str, Tensor], *, source: Path, with_head: bool, mode: str) -> list[Row]:
    """Load all that fits, the head only `with_head`, and tell what became of every tensor of both sides.

    Raises InputError that lists what does not fit, with its shapes, unless `mode` is partial. Heads may differ:
    one that does not load keeps what the seed gave it.
    """
    wanted = tensors if with_head else {name: t for name, t in tensors.items() if not _in_head(network, name)}
    loaded = set(checkpoint.load_released(network, wanted).loaded)
    own, given = network.state_dict(), published_weights.own_names(tensors)
    rows = []
    for name, tensor in own.items():
        found = given.get(name)
        if name in loaded:
            status, reason = "loaded", "same name and shape"
        elif _in_head(network, name):
            status, reason = "new", "a head of its own"
        elif found is None:
            status, reason = "skipped", "the source has no such tensor"
        else:
            status, reason = "skipped", f"the source has shape {_shape(found[1])}"
        rows.append(_row(name, tensor, status, reason, *(found or ())))
    for name, (source_name, tensor) in given.items():
        if name not in own:
            rows.append(_row("", None, "unused", "the network has no such tensor", source_name, tensor))
    misfits = [row for row in rows if row["status"] in ("skipped", "unused")]
    if misfits and mode == "strict":
        name = network.config.model_dump()["name"]
        lines = [f"  {r['name'] or r['source_name']} {r['shape'] or r['source_shape']}: {r['reason']}" for r in misfits]
        raise InputError(
            f"{source} does not fit network {name}, {len(misfits)} tensors are left over:\n"
            + "\n".join(lines)
            + "\ngive the network that these weights are of, or set models.*.transfer: partial to do without them"
        )
    return rows


def from_scratch(network: Network) -> list[Row]:
    """The account of a network that starts from nothing."""
    return [_row(name, tensor, "new", "from scratch") for name, tensor in network.state_dict().items()]


def table(rows: list[Row]) -> str:
    """The text of transfer.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(
    name: str, tensor: Tensor | None, status: str, reason: str, source_name: str = "", source: Tensor | None = None
) -> Row:
    values = (name, _shape(tensor), status, source_name, _shape(source), reason)
    return dict(zip(COLUMNS, values, strict=True))


def _shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


def _in_head(network: Network, name: str) -> bool:
    return published_weights.own_name(name).startswith(network.HEAD)
