"""Stage tune: the threshold or beta with the lowest VOI on the validation volumes.

Every candidate is scored from the overlaps of fragments and labels, which are counted once; the overlaps of all volumes
are summed, ids of different volumes being different.
"""

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tokenunify.config import Tuned
from tokenunify.errors import InputError
from tokenunify.evaluation import evaluate, ignored_label, metrics
from tokenunify.geometry import Blocks, check_shapes
from tokenunify.segmentation import agglomerate, rag
from tokenunify.segmentation.lut import Lut
from tokenunify.stages.sections import Tune
from tokenunify.store import arrays, forms, manifest

logger = logging.getLogger(__name__)


def disjoint(tables: Sequence[metrics.Contingency]) -> metrics.Contingency:
    """The sum of tables of different volumes, whose labels and segments are numbered anew."""
    parts, last = [], np.zeros(2, np.uint64)
    for labels, segments, counts, firsts in tables:
        names = [np.unique(column, return_inverse=True)[1].astype(np.uint64) + 1 for column in (labels, segments)]
        parts.append(metrics.Contingency(names[0] + last[0], names[1] + last[1], counts, firsts))
        last += [name.max() for name in names]
    return metrics.merge(parts)


def curve(
    candidates: Sequence[float], luts: Sequence[dict[float, Lut]], tables: Sequence[metrics.Contingency]
) -> list[dict[str, float]]:
    """Scores at each candidate; `luts` and `tables` (fragments and scored labels) are parallel, one per volume."""
    scored = []
    for value in candidates:
        parts = []
        for lut, table in zip(luts, tables, strict=True):
            segments = lut[value].apply(table.segments)  # the column held fragments
            parts.append(metrics.merge([table._replace(segments=segments)]))
        scored.append({"value": value, **metrics.scores_of(disjoint(parts))})
    return scored


def run(
    section: Tune, plain: dict, *, output: Path, rags: list[Path], fragments: list[Path], volumes: list[Path]
) -> None:
    """Write the chosen value and the scores at all candidates; the lists are parallel, one entry per volume."""
    tuned = agglomerate.parameter(section.segmentation)
    if not isinstance(tuned, Tuned):
        raise InputError(f"tune: the segmentation's value is fixed at {tuned}; give {{tune: [...]}} with candidates")
    if not len(rags) == len(fragments) == len(volumes) > 0:
        raise InputError(
            f"tune needs as many --rags as --fragments and --volumes, at least one, got {len(rags)}, {len(fragments)} "
            f"and {len(volumes)}"
        )
    started = time.monotonic()
    graphs = [rag.parts(path) for path in rags]
    linked = [rag.lifted_parts(path) for path in rags]
    given = zip(graphs, linked, strict=True)
    luts = [agglomerate.luts(parts, section.segmentation, tuned.tune, far) for parts, far in given]
    tables = []
    for path, volume in zip(fragments, volumes, strict=True):
        source, opened = arrays.open_prepared(path, forms.Fragments), arrays.open_volume(volume)
        check_shapes(str(path), source.shape, f"the labels of {volume}", evaluate.labels_of(opened).shape)
        blocks = Blocks(source.shape, tuple(manifest.content(path)["block_shape"]))
        read = partial(evaluate.read, source, opened, erode=section.erode_labels)
        rois = map(blocks.roi, range(len(blocks)))
        table = metrics.merge(metrics.contingency(*read(roi), roi, source.shape) for roi in rois)
        tables.append(ignored_label.without(table, opened, section.ignore_label))
    scored = curve(tuned.tune, luts, tables)
    best = min(scored, key=lambda entry: entry["voi"])
    logger.info("chosen %s with VOI %.4f among %d candidates", best["value"], best["voi"], len(scored))
    paths = {"rags": rags, "fragments": fragments, "volumes": volumes}
    content = {
        "value": best["value"],
        "curve": scored,
        "volumes": [path.stem for path in volumes],
        "inputs": {name: [manifest.content_hash(path) for path in group] for name, group in paths.items()},
    }
    voxels = sum(int(part.sizes.sum()) for parts in graphs for part in parts)
    manifest.write(output, content, {"seconds": round(time.monotonic() - started, 3), "voxels": voxels})
