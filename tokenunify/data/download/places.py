"""Fetch a file from whichever kind of place has it."""

from dataclasses import replace

from tokenunify.config import FileSource, WeightsSource
from tokenunify.data.download import (
    archives,
    google_drive,
    http,
    hugging_face,
    local,
    remote_box,
    sampled_region,
)
from tokenunify.data.download.job import Fetched, File, Job, Place
from tokenunify.data.formats import hdf5_references


def choose(file: File, job: Job) -> Place:
    """The place that has the file."""
    if file.path is not None:
        return local
    if file.huggingface is not None:
        return hugging_face
    if isinstance(file, FileSource) and file.drive is not None:
        return google_drive
    if isinstance(file, FileSource) and file.is_box:
        return remote_box if job.section.sample is None else sampled_region
    return http


def fetch(file: File, job: Job) -> Fetched:
    """The file, taken out of its archive, with all that the manifest records of it.

    Raises InputError that tells why it cannot be had, or that terms are to be accepted before anything is downloaded.
    """
    place = choose(file, job)
    if place is not local:
        job.check_terms()
    fetched = place.fetch(file, job)
    if isinstance(file, WeightsSource) or file.is_box:
        return fetched
    if file.member is not None:
        fetched = archives.extract(fetched, file, job)
    alone = file.path is None or file.member is not None
    others = hdf5_references.referred(fetched.path, file.format, file.dataset, alone=alone)
    recorded = {"format": file.format, "dataset": file.dataset}
    return replace(fetched, recorded={**recorded, "refers_to": others} if others else recorded)
