"""Fetch and verify source files, of a volume or of published weights; the first of the sources that works is used."""

import logging
from pathlib import Path

from tokenunify.config import Source, WeightsSource
from tokenunify.data.download import places
from tokenunify.data.download.job import Job
from tokenunify.data.download.throttle import Throttle
from tokenunify.errors import InputError
from tokenunify.stages import sections
from tokenunify.store import manifest

logger = logging.getLogger(__name__)


def run(
    section: sections.Download,
    plain: dict,
    *,
    downloads: Path,
    output: Path,
    permit: sections.Permit = sections.DEFAULT_PERMIT,
) -> None:
    """Write the manifest of the first source that works; InputError lists why none did."""
    job = Job(downloads, section, permit, Throttle(permit.max_mb_per_second))
    reasons = []
    for index, source in enumerate(section.sources):
        try:
            content, found = obtain(source, job)
        except InputError as error:
            logger.warning("source %d cannot be used: %s", index, error)
            reasons.append(f"  source {index}: {error}")
            continue
        manifest.write(output, content, {**found, "source": index, "section": plain})
        return
    raise InputError("none of the sources works:\n" + "\n".join(reasons))


def obtain(source: Source | WeightsSource, job: Job) -> tuple[dict, dict]:
    """What the files of a source are (hashed downstream), and where they are on this machine."""
    if isinstance(source, WeightsSource):
        weights = places.fetch(source, job)
        return {"weights": {"sha256": weights.sha256}}, {"weights": weights.path}
    if source.phantom is not None:
        return {"phantom": source.phantom.model_dump(mode="json"), "labels": None}, {}
    fetched = {role: places.fetch(file, job) for role, file in source.files.items()}
    content = {role: {"sha256": file.sha256, **file.recorded} for role, file in fetched.items()}
    paths = {role: file.path for role, file in fetched.items()}
    # Ingest is told what may be missing, which the hash of a volume must not depend on.
    allowed = {role: file.allow_missing for role, file in source.files.items()}
    return {"labels": None, **content}, {**paths, "allow_missing": allowed}
