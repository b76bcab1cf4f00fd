"""Pictures of the report: raw, labels, and what each model makes of them, side by side in one section of a volume."""

import logging
from collections.abc import Iterator

import numpy as np

from tokenunify import layout
from tokenunify.config import BASELINE
from tokenunify.errors import InputError
from tokenunify.evaluation import figures, ignored_label
from tokenunify.evaluation.report_manifests import Made
from tokenunify.store import arrays

logger = logging.getLogger(__name__)


def pictures(volume: str, made: list[Made], ignore_label: int) -> Iterator[dict]:
    """One row of pictures per cut: raw, labels, then each model's affinities and segmentations (its first seed).

    Labels that are not scored have no colour. `index` is that of the cut in the source.
    """
    source = next((m.path for m in made if m.stage == "ingest" and m.volume == volume), None)
    if source is None:
        return
    stores = [m for m in made if m.volume == volume and m.path.name == layout.PREPARED]
    mine = [m for m in stores if m.stage in ("predict", "baseline", "relabel")]
    first = [m for m in mine if m.seed == min(other.seed for other in mine if other.model == m.model)]
    names = [m.model for m in first]
    shown = sorted(first, key=lambda m: (names.index(m.model), m.stage == "relabel"))
    opened = arrays.open_volume(source)
    unscored = np.zeros(0, np.uint64) if opened.labels is None else ignored_label.ids_of(opened, ignore_label)
    for plane in figures.planes(opened.raw.shape, opened.voxel_size_nm):
        height, width = ((s.stop - s.start) for a, s in enumerate(plane.slices) if a != plane.axis)
        size = (height * plane.pixel_nm[0] / 1000, width * plane.pixel_nm[1] / 1000)
        yield {
            "plane": plane.name,
            "index": opened.origin[plane.axis] + plane.slices[plane.axis].start,
            "across": "zyx"[plane.axis],
            "size_um": size,
            "bar_nm": figures.bar_nm(size[1] * 1000),
            "panels": list(_panels(opened, plane, shown, unscored)),
        }


def _panels(volume: arrays.Volume, plane: figures.Plane, shown: list[Made], unscored: np.ndarray) -> Iterator[dict]:
    raw, labels = plane.cut(volume.raw) / 255, None
    yield {"title": "raw", "detail": "", "png": figures.picture(raw, plane.pixel_nm)}
    if volume.labels is not None:
        labels = plane.cut(volume.labels)
        labels = np.where(np.isin(labels, unscored), 0, labels)
        image = figures.overlay(raw, figures.coloured(labels))
        yield {"title": "ground truth", "detail": "", "png": figures.picture(image, plane.pixel_nm)}
    for made in shown:
        try:
            cut = plane.cut(arrays.open_prepared(made.path))
        except InputError as error:
            logger.warning("a picture is left out: %s", error)
            continue
        if made.stage == "relabel":
            title, image = made.name, figures.overlay(raw, figures.coloured(cut, labels))
        else:
            in_plane = [axis for axis in range(3) if axis != plane.axis]
            title, image = f"affinities {', '.join('zyx'[axis] for axis in in_plane)}", cut[in_plane].mean(axis=0) / 255
            title = "smoothed raw" if made.model == BASELINE else title
        detail = f"{made.model}, seed {made.seed}"
        yield {"title": title, "detail": detail, "png": figures.picture(image, plane.pixel_nm)}
