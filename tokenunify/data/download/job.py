"""What every place is given and gives back: each is a module with the function `fetch(file, job) -> Fetched`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tokenunify.config import FileSource, WeightsSource
from tokenunify.data.download.throttle import Throttle
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

File = FileSource | WeightsSource


@dataclass(frozen=True)
class Job:
    """Where files go, and what the stage was told beside the sources."""

    downloads: Path
    section: sections.Download
    permit: sections.Permit
    throttle: Throttle

    def target(self, identity: object, name: str) -> Path:
        """Where to keep what `identity` tells apart."""
        return self.downloads / f"{manifest.digest(identity)[:8]}-{name}"

    def check_terms(self) -> None:
        """Refuse to download what its owner gives only to those who accept the terms."""
        terms = self.section.terms
        if terms is None or not terms.ask or terms.name in self.permit.accept_licenses:
            return
        accepted = ", ".join([*self.permit.accept_licenses, terms.name])
        where = f" ({terms.url})" if terms.url else ""
        raise InputError(
            f"the terms {terms.name}{where} are not accepted, so nothing is downloaded. They say: {terms.text}\n"
            f"If you keep to them, put this line at the top level of the configuration: accept_licenses: [{accepted}]"
        )


@dataclass(frozen=True)
class Fetched:
    """A file, folder or glob that is on this machine and has been verified."""

    path: str
    sha256: str
    recorded: dict[str, Any] = field(default_factory=dict)
    """What the manifest records of it beside its checksum."""


class Place(Protocol):
    """A kind of place that files come from."""

    def fetch(self, file: File, job: Job) -> Fetched:
        """Bring the file to this machine, unless it is here; InputError tells why it cannot be had."""


def format_of(file: File) -> str:
    """Format of what the place holds: `archive` where a member of it is wanted, `weights` of a network's."""
    if isinstance(file, WeightsSource):
        return "weights"
    return "archive" if file.member is not None else file.format
