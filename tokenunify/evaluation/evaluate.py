"""Stage evaluate: score a segmentation against the labels of its volume, block by block.

The worst errors are then looked at again: in the blocks where two of their pieces lie near each other.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from tokenunify import affinities
from tokenunify.errors import InputError
from tokenunify.evaluation import false_contacts, ignored_label, metrics, objects, run_length
from tokenunify.geometry import Blocks, Roi, check_shapes
from tokenunify.stages.sections import Evaluate
from tokenunify.store import arrays, blockwise, manifest


def labels_of(volume: arrays.Volume) -> arrays.Store:
    """The volume's labels; without any it cannot be scored."""
    if volume.labels is None:
        raise InputError(f"volume {volume.name} has no labels to score against: give it labels, or do not evaluate it")
    return volume.labels


def read_labels(volume: arrays.Volume, roi: Roi, *, erode: bool) -> np.ndarray:
    """Labels of a box as they are scored: eroded in each section if wanted.

    What the volume's mask excludes from segmentation is unknown (2^64-1).
    """
    labels = labels_of(volume)
    z, y, x = labels.shape
    outer = roi.grow((0, 1, 1), (0, 1, 1), (z, y, x)) if erode else roi
    read = labels[outer.slices]
    scored = affinities.erode_labels(read)[roi.within(outer)] if erode else read
    if volume.mask is not None:
        scored = np.where(volume.mask[roi.slices], scored, np.uint64(affinities.IGNORE))
    return scored


def read(segmentation: arrays.Store, volume: arrays.Volume, roi: Roi, *, erode: bool) -> tuple[np.ndarray, np.ndarray]:
    """A box of a segmentation (or of fragments), and of the labels as they are scored."""
    return segmentation[roi.slices], read_labels(volume, roi, erode=erode)


def run(section: Evaluate, plain: dict, *, segmentation: Path, volume: Path, output: Path) -> None:
    """Write the scores; what the blocks add to them is kept in a folder beside, and a rerun continues with the rest.

    Places of errors are in the source's voxels.
    """
    opened, segments = arrays.open_volume(volume), arrays.open_prepared(segmentation)
    check_shapes(str(segmentation), segments.shape, f"the labels of {volume}", labels_of(opened).shape)
    inputs = {"segmentation": manifest.content_hash(segmentation), "volume": manifest.content_hash(volume)}
    folder = blockwise.store_folder(output, "evaluate", plain, inputs)
    blocks = Blocks(segments.shape, section.block_shape)
    step = run_length.steps(opened.voxel_size_nm, section.skeleton_spacing_nm)

    read_box = partial(read, segments, opened, erode=section.erode_labels)

    def process(index: int, roi: Roi) -> None:
        found, truth = read_box(roi)
        if step is not None:
            samples = run_length.sampled(truth, found, roi, step)
            arrays.write_npz(folder / "samples" / f"{index}.npz", **samples._asdict())
        table = metrics.contingency(found, truth, roi, segments.shape)
        arrays.write_npz(folder / "blocks" / f"{index}.npz", **table._asdict())

    def kept(name: str, index: int) -> dict[str, np.ndarray]:
        return arrays.read_npz(folder / name / f"{index}.npz", f"delete {folder} and run snakemake again")

    def table_of(index: int) -> metrics.Contingency:
        return metrics.Contingency(**kept("blocks", index))

    run = blockwise.run_part(folder, blocks, process)
    table = metrics.merge(map(table_of, range(len(blocks))))
    scored = ignored_label.without(table, opened, section.ignore_label)
    unscored = ignored_label.ids_of(opened, section.ignore_label)
    splits = false_contacts.Objects(objects.worst_splits(scored, segments.shape), False, unscored)
    merges = false_contacts.Objects(objects.worst_merges(scored, segments.shape), True, unscored)

    def located(worst: false_contacts.Objects) -> list[dict]:
        touching = false_contacts.of_volume(worst, read_box, table_of, blocks, opened.voxel_size_nm)
        return [asdict(error.moved(opened.origin)) for error in objects.located(worst.errors, touching)]

    content = {**summary(scored, section), "splits": located(splits), "merges": located(merges), "inputs": inputs}
    if step is not None:
        grid = run_length.Grid(blocks, step, opened.voxel_size_nm)
        lengths = run_length.of_volume(lambda index: run_length.Samples(**kept("samples", index)), grid, unscored)
        content |= run_length.scores(lengths)
    manifest.write(output, content, {**run, "store": folder.name})


def summary(scored: metrics.Contingency, section: Evaluate) -> dict:
    """Scores, numbers of segments and labels that are scored, and how they were scored."""
    return {
        **metrics.scores_of(scored),
        "num_segments": int(np.unique(scored.segments).size),
        "num_labels": int(np.unique(scored.labels).size),
        "erode_labels": section.erode_labels,
        "ignore_label": section.ignore_label,
    }
