"""Pictures of the report: sections of a volume in false colours (PNG), training and tuning curves (SVG).

A segment that matches a neuron takes the neuron's colour; what was split off has a colour of its own, and neurons that
were merged share one.
"""

import io
import itertools
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imsave

from tokenunify.geometry import Coordinate, centre
from tokenunify.kernels import ids as id_arrays

MAX_VOXELS = 512
"""Voxels of a section shown along its longer side, around the centre."""
MIN_PIXELS = 480
"""Pixels of a picture along its longer side, at least."""
ISOTROPIC = 1.5
"""Up to this ratio of voxel sizes the volume is shown cut across its sections, too."""
GOLDEN = 0.618033988749895
MAX_COLOURS = 65521
"""Labels that differ by a multiple of this prime share a colour."""
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888",
    "axes.grid": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "tokenunify",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Okabe and Ito's, told apart by colour-blind readers."""


class Plane(NamedTuple):
    """A rectangle of a volume, one voxel thick."""

    name: str
    """The axes shown, rows first."""
    axis: int
    """The axis across."""
    slices: tuple[slice, slice, slice]
    pixel_nm: tuple[float, float]
    """Voxel size along rows and columns."""

    def cut(self, array: Any) -> np.ndarray:
        """The rectangle (..., rows, columns) of an array whose last three axes are z, y, x."""
        return np.take(np.asarray(array[(..., *self.slices)]), 0, axis=self.axis - 3)


def planes(shape: Coordinate, voxel_size_nm: Sequence[float]) -> list[Plane]:
    """The middle section; of an isotropic volume also the cut at right angles to it."""
    across = (0, 1) if max(voxel_size_nm) <= ISOTROPIC * min(voxel_size_nm) else (0,)
    found = []
    for axis in across:
        z, y, x = (1 if a == axis else min(MAX_VOXELS, size) for a, size in enumerate(shape))
        rows, columns = (a for a in range(3) if a != axis)
        pixel = (float(voxel_size_nm[rows]), float(voxel_size_nm[columns]))
        found.append(Plane("zyx"[rows] + "zyx"[columns], axis, centre(shape, (z, y, x)), pixel))
    return found


# ------------------------------------------------------------------------------------------------ pictures


def colours(index: np.ndarray) -> np.ndarray:
    """Colours (n, 3) in [0, 1] of numbers (n,); those of successive numbers are far apart."""
    hues, saturations = index * GOLDEN % 1, np.array([0.85, 0.6, 0.95])[index % 3]
    return hsv_to_rgb(np.stack([hues, saturations, np.array([1.0, 0.9])[index // 3 % 2]], axis=1))


def matches(segmentation: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """Segment -> label, where each overlaps the other most among all that it overlaps; label 0 is none."""
    known = (labels > 0) & (segmentation > 0)
    both = np.stack([segmentation[known], labels[known]], axis=1).astype(np.uint64)
    pairs, counts = np.unique(both, axis=0, return_counts=True)
    order = np.argsort(counts, kind="stable")  # of equal overlaps the last pair counts, for both
    best_label = {int(segment): int(label) for segment, label in pairs[order]}
    best_segment = {int(label): int(segment) for segment, label in pairs[order]}
    return {segment: label for segment, label in best_label.items() if best_segment[label] == segment}


def coloured(ids: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Colours (y, x, 3) of ids (y, x); of a segmentation those of the labels it matches. Id 0 is NaN.

    A label has the same colour in every picture.
    """
    values, index = id_arrays.compact(ids)
    known = ids if labels is None else labels
    matched = {value: value for value in values.tolist()} if labels is None else matches(ids, labels)
    own = itertools.count(int(np.max(known.astype(np.uint64) % MAX_COLOURS)) + 1)
    numbers = np.array([matched[v] % MAX_COLOURS if v in matched else next(own) for v in values.tolist()])
    table = colours(numbers)
    table[values == 0] = np.nan
    return table[index]


def overlay(raw: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Colours (y, x, 3), half transparent, over raw (y, x) in [0, 1], and light lines where they change.

    Where they are NaN the raw alone is seen.
    """
    grey = np.repeat(raw[..., None], 3, axis=2)
    image = np.where(np.isnan(colour), grey, 0.5 * grey + 0.5 * colour)
    return np.where(edges(np.nan_to_num(colour, nan=-1))[..., None], 0.4 * image + 0.6, image)


def edges(colour: np.ndarray) -> np.ndarray:
    """Where (y, x) the colour differs from that of the next row or column."""
    edge = np.zeros(colour.shape[:2], bool)
    edge[:-1] |= (colour[:-1] != colour[1:]).any(axis=2)
    edge[:, :-1] |= (colour[:, :-1] != colour[:, 1:]).any(axis=2)
    return edge


def picture(image: np.ndarray, pixel_nm: tuple[float, float]) -> bytes:
    """PNG of an image (y, x[, 3]) in [0, 1] with square pixels and a scale bar of `bar_nm` at its lower left."""
    extent = [n * size for n, size in zip(image.shape, pixel_nm, strict=False)]
    longest = int(np.argmax(extent))
    unit = pixel_nm[longest] / int(np.ceil(MIN_PIXELS / image.shape[longest]))
    rows, columns = (
        np.minimum(np.arange(round(length / unit)) * unit // size, n - 1).astype(int)
        for length, size, n in zip(extent, pixel_nm, image.shape, strict=False)
    )
    rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    grown = rgb[rows][:, columns]
    length = round(bar_nm(extent[1]) / extent[1] * grown.shape[1])
    margin, thickness = max(4, grown.shape[1] // 40), max(3, grown.shape[1] // 120)
    bottom = grown.shape[0] - margin
    rim = slice(max(0, margin - thickness), margin + length + thickness)
    grown[bottom - 2 * thickness : bottom + thickness, rim] = 0  # as thick as the bar: pictures are shown smaller
    grown[bottom - thickness : bottom, margin : margin + length] = 1
    file = io.BytesIO()
    imsave(file, np.clip(grown, 0, 1), format="png")
    return file.getvalue()


def bar_nm(width_nm: float) -> float:
    """Length of the scale bar: the largest of 1, 2, 5, 10, ... nm that is at most a third of the width."""
    limit = width_nm / 3
    power = 10.0 ** np.floor(np.log10(limit))
    return float(max(step * power for step in (1, 2, 5) if step * power <= limit))


# ------------------------------------------------------------------------------------------------ curves


class Training(NamedTuple):
    """The log of one training run."""

    model: str
    """Or pre-training."""
    seed: int
    log: Any
    """Data frame with the columns step, loss, seconds, and validation_loss or those of PRETRAINING."""


PRETRAINING = {
    "loss_random": "random",
    "loss_next": "next",
    "loss_next_all": "next-all",
    "variance_ratio": "variance of targets",
}
"""Columns of a pre-training's log, each drawn by itself where it holds something, and their titles.

The last is relative to the mean over all tokens: an order that puts blank ones last would bring it to 0.
"""


class Tuning(NamedTuple):
    """The scores on the validation volumes over the candidates of a threshold or beta."""

    model: str
    name: str
    """The segmentation."""
    seed: int
    curve: Sequence[dict[str, float]]
    chosen: float


def training(runs: Iterable[Training]) -> bytes:
    """SVG of training and validation loss over steps and over time; one colour per model, one line per seed."""
    runs = list(runs)
    names = list(dict.fromkeys(run.model for run in runs))
    longest = max(run.log["seconds"].max() for run in runs)
    unit, scale = ("h", 3600.0) if longest > 7200 else ("min", 60.0) if longest > 120 else ("s", 1.0)
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for run in runs:
            colour = COLOURS[names.index(run.model) % len(COLOURS)]
            first = run.seed == min(r.seed for r in runs if r.model == run.model)
            for axis, x in zip(axes, (run.log["step"], run.log["seconds"] / scale), strict=True):
                axis.plot(x, run.log["loss"], color=colour, alpha=0.35, lw=1, label=f"{run.model}, training" * first)
                known = run.log["validation_loss"].notna()
                if known.any():
                    style = {"color": colour, "lw": 1.5, "marker": "o", "ms": 3}
                    label = f"{run.model}, validation" * first
                    axis.plot(x[known], run.log["validation_loss"][known], label=label or None, **style)
        axes[0].set(xlabel="step", ylabel="loss", ylim=(0, None))
        axes[1].set_xlabel(f"training time ({unit})")
        axes[0].legend()
        return _svg(figure)


def pretraining(runs: Iterable[Training]) -> bytes:
    """SVG of the loss of each objective over steps; one colour per pre-training, one line per seed."""
    runs = list(runs)
    names = list(dict.fromkeys(run.model for run in runs))
    last = max(run.log["step"].max() for run in runs)
    shown = [column for column in PRETRAINING if any(run.log[column].notna().any() for run in runs)]
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 2.8), layout="constrained")
        for axis, column in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for run in runs:
                if run.log[column].notna().any():
                    first = run.seed == min(r.seed for r in runs if r.model == run.model)
                    style = {"color": COLOURS[names.index(run.model) % len(COLOURS)], "lw": 0.8, "ms": 2}
                    axis.plot(run.log["step"], run.log[column], ".-", label=run.model * first, **style)
            axis.set(title=PRETRAINING[column], xlabel="step", xlim=(0, last), ylim=(0, None))
            axis.legend()
        figure.axes[0].set_ylabel("loss")
        return _svg(figure)


def tuning(runs: Iterable[Tuning]) -> bytes:
    """SVG of VOI split against VOI merge over the candidates, a panel per segmentation and in it one colour per model.

    The chosen candidates are filled, and stand in the legend.
    """
    runs = list(runs)
    names, models = (list(dict.fromkeys(column)) for column in ([r.name for r in runs], [r.model for r in runs]))
    columns = min(3, len(names))
    rows = ceil(len(names) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.8 * columns, 2.8 * rows), layout="constrained")
        for number, name in enumerate(names, start=1):
            axis = figure.add_subplot(rows, columns, number)
            for model in models:
                seeds = [run for run in runs if (run.name, run.model) == (name, model)]
                chosen = ", ".join(f"{value:g}" for value in dict.fromkeys(run.chosen for run in seeds))
                colour = COLOURS[models.index(model) % len(COLOURS)]
                for run in seeds:
                    x, y = ([entry[key] for entry in run.curve] for key in ("voi_split", "voi_merge"))
                    label = f"{model}: {chosen}" if run is seeds[0] else None
                    axis.plot(x, y, "-o", color=colour, lw=1, ms=3.5, mfc="white", label=label)
                    best = [entry["value"] for entry in run.curve].index(run.chosen)
                    axis.plot(x[best], y[best], "o", color=colour, ms=6)
            axis.set(title=name, xlabel="VOI split (bits)", xlim=(0, None), ylim=(0, None))
            if (number - 1) % columns == 0:
                axis.set_ylabel("VOI merge (bits)")
            axis.legend()
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
