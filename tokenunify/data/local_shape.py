"""The shape of a volume whose raw lies on this machine: what its header says, without reading voxels."""

from tokenunify.config import Volume
from tokenunify.data import local_files
from tokenunify.data.formats import compressed, readers
from tokenunify.errors import InputError
from tokenunify.geometry import Coordinate


def local_shape(volume: Volume) -> Coordinate | None:
    """Shape of the first source that is a file or folder here; None where there is none that can be opened as it is."""
    for source in volume.sources:
        file = source.raw
        if file is None or file.path is None or file.member is not None:
            continue
        try:
            path = local_files.find(file.path, file.format)
            if not compressed.is_gzip(path):  # which would have to be unpacked first
                return readers.open_array(path, file.format, file.dataset).whole
        except (InputError, OSError):
            continue  # the download says what is wrong with it
    return None
