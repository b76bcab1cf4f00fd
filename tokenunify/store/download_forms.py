"""What is read of a download's manifest: see `forms`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tokenunify.store.forms import Box, Form, Three


class Hashed(Form):
    """a file"""

    sha256: str


class WeightsPath(Form):
    """a download's run"""

    weights: str


class Published(Form):
    """downloaded weights"""

    weights: Hashed
    run: WeightsPath


class Cut(Box):
    """a box of a source"""

    offset: Annotated[list[int], Field(min_length=3, max_length=3)]
    whole: Three


class File(Hashed):
    """a source's file"""

    format: str
    dataset: str | None
    box: Cut | None = None


class Paths(Form):
    """a download's run"""

    raw: str | None = None
    labels: str | None = None
    mask: str | None = None


class Sources(Form):
    """a download"""

    phantom: dict | None = None
    raw: File | None = None
    labels: File | None = None
    mask: File | None = None
    run: Paths

    @model_validator(mode="after")
    def has_raw_and_the_places_of_files(self) -> Self:
        if self.phantom is None and self.raw is None:
            raise ValueError("expected raw or a phantom")
        for role in ("raw", "labels", "mask"):
            if getattr(self, role) is not None and getattr(self.run, role) is None:
                raise ValueError(f"expected the path of {role} in run")
        return self
