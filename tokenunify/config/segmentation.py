"""Fragments, agglomeration and the baseline."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tokenunify.config.base import Count, Fraction, Padding, Shape, Strict

Score = Literal["max25", "max50", "max75", "hist10", "hist25", "hist50", "hist75", "hist90", "mean"]
Solver = Literal["kernighan-lin", "greedy-additive", "fusion-moves", "decomposed"]
Beta = Annotated[float, Field(gt=0, lt=1)]


class Fragments(Strict):
    """Seeded watershed of the boundary map."""

    dimensions: Literal[2, 3] = 2
    """2: section by section (anisotropic); 3: isotropic."""
    boundary: Literal["mean", "max"] = "mean"
    """Boundary = 1 - affinity, mean (waterz) or maximum (multicut) over y and x, over z too in 3D."""
    threshold: Fraction = 0.5
    """Boundary values from here on are boundary for the distance transform."""
    sigma_seeds: Annotated[float, Field(ge=0)] = 0.0
    """Smoothing, in voxels, of the distance transform before its maxima are taken."""
    sigma_weights: Annotated[float, Field(ge=0)] = 0.0
    """Smoothing, in voxels, of the boundary map that is flooded."""
    distance_weight: Fraction = 0.0
    """Share of the inverted distances, scaled to [0, 1], in the map that is flooded."""
    diagonal_seeds: bool = False
    """Whether a maximum of the distances is compared with its diagonal neighbours too."""
    min_size: Count = 0
    """Fragments of fewer voxels are given to their neighbours."""
    halo: Padding = (0, 32, 32)
    """Context read around a block; with dimensions 3 it is (32, 32, 32) if not given.

    Distances are capped at its smallest value along the axes of the watershed (all 0: not capped), which is as far as
    they are known at a block's faces.
    """
    block_shape: Shape | None = None
    """Null: storage.block_shape."""

    @model_validator(mode="before")
    @classmethod
    def halo_in_all_axes(cls, given: Any) -> Any:
        isotropic = isinstance(given, dict) and given.get("dimensions") == 3
        return {"halo": (32, 32, 32), **given} if isotropic else given

    @model_validator(mode="after")
    def halo_has_all_axes_or_none(self) -> Self:
        along = self.halo[-self.dimensions :]
        if any(along) and not all(along):
            axes = "z, y and x" if self.dimensions == 3 else "y and x"
            raise ValueError(
                f"halo must be above 0 along {axes}, or 0 along all, got {list(self.halo)}: where one axis has no "
                "context, false mergers cross the faces of blocks"
            )
        return self


class Tuned(Strict):
    """Candidates, of which the validation volumes choose the one with the lowest VOI."""

    tune: Annotated[tuple[Fraction, ...], Field(min_length=1)]
    """Thresholds to try on the validation volumes, for example `[0.3, 0.5, 0.7]`."""


class TunedBeta(Tuned):
    """Candidates for beta."""

    tune: Annotated[tuple[Beta, ...], Field(min_length=1)]
    """Values of beta to try on the validation volumes, for example `[0.3, 0.5, 0.7]`."""


class Waterz(Strict):
    """Hierarchical merging of the rag as in waterz."""

    method: Literal["waterz"]
    """Hierarchical agglomeration."""
    fragments: Fragments = Fragments()
    """The watershed whose fragments are merged."""
    score: Score = "max50"
    """max50: HistogramQuantileAffinity<50, 256 bins, InitWithMax>, the paper's: an edge starts with its highest alone.

    hist50: it starts with all its affinities, the score is their median. Other numbers are other quantiles in percent:
    higher ones merge more. mean: MeanAffinity.
    """
    threshold: Fraction | Tuned = 0.5
    """Pairs of fragments that score below it are merged, lowest score (1 - affinity) first; or candidates to tune."""
    hierarchy: Fraction | None = None
    """Null: exact, with the whole graph in memory.

    Else pairs that score below this are merged in each part of the rag (`resources.rag.parts`) before the parts' graphs
    are put together, which bounds memory. The result differs: benchmarks/agglomeration.py measures how much.
    """

    @model_validator(mode="after")
    def hierarchy_is_below(self) -> Self:
        lowest = min(self.threshold.tune) if isinstance(self.threshold, Tuned) else self.threshold
        if self.hierarchy is not None and self.hierarchy > lowest:
            raise ValueError(
                f"hierarchy must be at most the threshold (the lowest candidate), {lowest}, got {self.hierarchy}: "
                "what is merged in a part stays merged; lower it"
            )
        return self


class Multicut(Strict):
    """Multicut of the rag with size-weighted log-odds costs."""

    method: Literal["multicut"]
    """Partition of the graph with the lowest cost of cut edges."""
    fragments: Fragments = Fragments(
        boundary="max",
        threshold=0.25,
        sigma_seeds=2.0,
        sigma_weights=2.0,
        distance_weight=0.1,
        diagonal_seeds=True,
        min_size=100,
    )
    """The watershed whose fragments are joined."""
    beta: Beta | TunedBeta = 0.5
    """Boundary bias: higher values cut more."""
    solver: Solver = "kernighan-lin"
    """Kernighan-Lin starts from the greedy solution, fusion moves from Kernighan-Lin's.

    decomposed solves slabs of the volume first, and then what is left between them: for large graphs.
    """
    lifted: bool = Field(False, exclude_if=lambda lifted: not lifted)
    """Let fragments that do not touch attract or repel each other, too, by the affinities of the long-range offsets.

    They cannot be joined but through others. predict then stores all the channels that the models are trained with.
    """

    @model_validator(mode="after")
    def solver_is_lifted(self) -> Self:
        if self.lifted and self.solver == "decomposed":
            raise ValueError(
                "lifted needs a solver that knows lifted edges: kernighan-lin, greedy-additive or fusion-moves, got "
                "solver decomposed; change either"
            )
        return self


Segmentation = Annotated[Waterz | Multicut, Field(discriminator="method")]


class Baseline(Strict):
    """The `raw-watershed` baseline: smoothed raw intensities stand for affinities."""

    sigma_nm: Annotated[float, Field(ge=0)] = 16.0
    """Smoothing of the raw; bright is inside."""
    segmentation: Waterz = Waterz(
        method="waterz",
        score="mean",
        threshold=Tuned(tune=(0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)),
    )
    """How the smoothed raw is segmented."""


def is_tuned(segmentation: Waterz | Multicut) -> bool:
    """Whether the threshold or beta is chosen on validation volumes."""
    value = segmentation.threshold if isinstance(segmentation, Waterz) else segmentation.beta
    return isinstance(value, Tuned)
