"""The module `data.ingest.label_components`, by the name that it had before."""

from tokenunify.data.ingest.label_components import find, of_voxels

__all__ = ["find", "of_voxels"]
