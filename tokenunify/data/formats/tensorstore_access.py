"""How tensorstore reads at an address: retries, limits, and the environment's endpoint and credentials."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import requests
import tensorstore as ts

from tokenunify.data import retry
from tokenunify.errors import InputError

CACHE_BYTES = 2**28
"""Chunks kept decoded: those on the border of two blocks are fetched once."""
REQUESTS = 16
"""Chunks fetched at a time."""
FORBIDDEN = re.compile(r"PERMISSION_DENIED.*(?:HTTP code |http_response_code=')(\d+)", re.DOTALL)
"""What tensorstore says of the answers 401 and 403."""
CODE = re.compile(r"([A-Z_]+): ")
"""How tensorstore's errors begin."""
REFUSED = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED", "OUT_OF_RANGE")
"""The codes of errors about what a file says; others are about files and servers."""


@cache
def context() -> ts.Context:
    """What all arrays share: a cache of chunks, and requests that are tried again after passing faults."""
    retries = {"max_retries": retry.ATTEMPTS - 1, "initial_delay": f"{retry.BACKOFF_SECONDS}s"}
    settings: dict = {"cache_pool": {"total_bytes_limit": CACHE_BYTES}}
    for kind in ("http", "gcs", "s3"):
        settings |= {f"{kind}_request_concurrency": {"limit": REQUESTS}, f"{kind}_request_retries": retries}
    if not {"AWS_ACCESS_KEY_ID", "AWS_PROFILE"} & set(os.environ):
        settings["aws_credentials"] = {"type": "anonymous"}  # else a public bucket waits for those of a cloud machine
    return ts.Context(settings)


def folder(address: str) -> dict:
    """Tensorstore's description of the folder; those of s3 are at AWS_ENDPOINT_URL where that is set."""
    place = ts.KvStore.Spec(address).to_json()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if place["driver"] == "s3" and endpoint:
        place |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
    return place


class Tensor:
    """A tensorstore array read when indexed; its first voxel is number 0, wherever the file puts it."""

    def __init__(self, store: ts.TensorStore):
        self.store = store[ts.d[:].translate_to[0]]
        self.shape, self.dtype = tuple(self.store.shape), np.dtype(self.store.dtype.numpy_dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.store[index].read().result())


def array(driver: str, address: str, **options: Any) -> Tensor:
    """The array in the folder at the address, read by a driver of tensorstore with its options."""
    spec = {"driver": driver, "kvstore": folder(address), **options}
    return Tensor(ts.open(spec, read=True, open=True, context=context()).result())


def store(address: str) -> ts.KvStore:
    """The folder's files by their names."""
    return ts.KvStore.open(folder(address), context=context()).result()


def local(address: str) -> Path | None:
    """The folder, where the address is one of this machine."""
    return Path(url2pathname(urlparse(address).path)) if address.startswith("file://") else None


def read(address: str, name: str) -> bytes | None:
    """The content of a file of the folder; None where it is not there, which some stores call forbidden."""
    return _ask(address, name)[0]


def refusal(address: str, name: str) -> str | None:
    """The answer, 401 or 403, of a server that forbids to read the file; None where it allows to."""
    return _ask(address, name)[1]


def _ask(address: str, name: str) -> tuple[bytes | None, str | None]:
    try:
        found = store(address).read(name).result()
    except ValueError as error:
        forbidden = FORBIDDEN.search(str(error))
        if forbidden is None:
            raise
        return None, forbidden[1]
    return bytes(found.value) if found.state == "value" else None, None


def is_fault(error: str) -> bool:
    """Whether an error of tensorstore is about a file or a server that cannot be reached."""
    code = CODE.match(error)
    return code is not None and code[1] not in REFUSED


def moved(address: str, names: tuple[str, ...]) -> str:
    """The address to which the server redirects the folder that has files of these names; tensorstore cannot follow."""
    strange = None
    for name in names if address.startswith("http") else ():
        try:
            answer = requests.head(f"{address}/{name}", allow_redirects=True, timeout=retry.TIMEOUT_SECONDS)
        except requests.RequestException:  # told when the file is read
            return address
        if answer.ok and not answer.history:
            return address
        if answer.ok and answer.url.endswith(quoted := requests.utils.requote_uri(f"/{name}")):
            return answer.url.removesuffix(quoted)
        strange = answer.url.partition("?")[0] if answer.history else strange
    if strange:
        raise InputError(
            f"{address} redirects to {strange}, where no such folder is; give an address whose files are served "
            "without redirects, and without a login"
        )
    return address


def bytes_read() -> int:
    """Bytes that this process has read so far."""
    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    return sum(m["values"][0]["value"] for m in metrics if m["name"].endswith("/bytes_read"))
