"""Stage segmentations: one table of a volume's segmentations, with labels or without, a row for each."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from tokenunify import layout
from tokenunify.errors import InputError
from tokenunify.evaluation.report_manifests import Made, locate
from tokenunify.evaluation.score_table import commit
from tokenunify.segmentation import lut, rag
from tokenunify.stages.sections import Segmentation, Segmentations
from tokenunify.store import forms, manifest

COLUMNS = (
    *("volume", "dataset", "model", "seed", "segmentation", "method", "threshold", "threshold_source", "path"),
    *("num_segments", "voxels", "median_segment", "largest_segment", "seconds", "commit"),
)


def run(section: Segmentations, plain: dict, *, output: Path, manifests: list[Path]) -> None:
    """Write the table from the manifests of all rows; the first part of a stage stands for all of its parts."""
    paths = dict.fromkeys(path for given in manifests for path in layout.all_parts(given))
    made, version = [locate(path) for path in paths], commit()
    rows = [{**row(known, made), "commit": version} for known in section.rows]
    manifest.write_text(output, pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n"))


def row(known: Segmentation, made: list[Made]) -> dict:
    """One row: where the segmentation is, how many segments it has, and how large they are, in voxels.

    `path` is that of the OME-Zarr image, relative to the working directory; `seconds` are those of all jobs from the
    affinities on, be they shared with other rows.
    """
    of_run = [m for m in made if (m.volume, m.model, m.seed) == (known.volume, known.model, known.seed)]
    mine = [m for m in of_run if m.name in ("", known.fragments, known.segmentation)]
    stores = {m.stage: m.path for m in mine if m.path.name == layout.PREPARED}
    jobs = {m.stage: m.path for m in mine if m.path.name != layout.PREPARED}
    if lacking := {"rag", "agglomerate", "relabel"} - (stores.keys() | jobs.keys()):
        raise InputError(
            f"segmentations: {known.model}, seed {known.seed}, {known.segmentation} lacks the manifests of "
            f"{sorted(lacking)}; run snakemake, which gives them"
        )
    choice, prepared = manifest.content(jobs["agglomerate"], forms.Choice), manifest.content(stores["relabel"])
    sizes = segment_sizes(jobs["rag"], jobs["agglomerate"])
    return {
        **known.model_dump(exclude={"fragments"}),
        "threshold": repr(float(choice["value"])),
        "threshold_source": choice["source"],
        "path": os.path.relpath(stores["relabel"].parent / Path(prepared["store"]).parent),
        "num_segments": sizes.size,
        "voxels": int(np.prod(prepared["shape"])),
        "median_segment": int(np.median(sizes)) if sizes.size else 0,
        "largest_segment": int(sizes.max(initial=0)),
        "seconds": round(sum(m.read["run"].get("seconds", 0) for m in mine if m.path.name != layout.PREPARED), 1),
    }


def segment_sizes(graph: Path, table: Path) -> np.ndarray:
    """Voxels of each segment (n,), from the graph's parts and the table of fragments."""
    fragments, segments = lut.read(table)
    _, index = np.unique(segments, return_inverse=True)
    sizes = np.zeros(index.max(initial=-1) + 1, np.int64)
    for part in rag.parts(graph):
        np.add.at(sizes, index[np.searchsorted(fragments, part.nodes)], part.sizes.astype(np.int64))
    return sizes
