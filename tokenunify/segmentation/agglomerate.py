"""Stage agglomerate: fragments to segments on the graph, at a given or tuned threshold or beta."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tokenunify.config import Multicut, Tuned, Waterz
from tokenunify.errors import InputError
from tokenunify.segmentation import hierarchy, lifted, lut, multicut, waterz
from tokenunify.segmentation.graph import Rag, Stored, merge
from tokenunify.segmentation.rag import lifted_parts, parts
from tokenunify.stages.sections import Agglomerate
from tokenunify.store import forms, manifest


def parameter(segmentation: Waterz | Multicut) -> float | Tuned:
    """What is tuned or given: waterz's threshold, the multicut's beta."""
    return segmentation.threshold if isinstance(segmentation, Waterz) else segmentation.beta


def luts(
    graphs: Sequence[Rag | Stored],
    segmentation: Waterz | Multicut,
    values: Sequence[float],
    linked: Sequence[Rag | Stored] = (),
) -> dict[float, lut.Lut]:
    """Table at each threshold or beta, from the graphs of all parts; `linked` are those of long-range pairs."""
    if isinstance(segmentation, Waterz) and segmentation.hierarchy is not None:
        return hierarchy.agglomerate(graphs, values, segmentation.score, segmentation.hierarchy)
    graph = merge(graphs)
    return of_graph(graph, segmentation, values, _lifted(linked, graph, segmentation))


def of_graph(
    graph: Rag, segmentation: Waterz | Multicut, values: Sequence[float], far: Rag | None = None
) -> dict[float, lut.Lut]:
    """Table at each threshold or beta, from the graph of the whole volume; `far` are its lifted edges."""
    if isinstance(segmentation, Waterz):
        return waterz.agglomerate(graph, values, segmentation.score)
    return {beta: multicut.agglomerate(graph, beta, segmentation.solver, far) for beta in values}


def _lifted(linked: Sequence[Rag | Stored], graph: Rag, segmentation: Waterz | Multicut) -> Rag | None:
    """The lifted edges, where the segmentation has them."""
    if isinstance(segmentation, Waterz) or not segmentation.lifted:
        return None
    return lifted.apart(merge(linked), graph)


def chosen(segmentation: Waterz | Multicut, tuned: Sequence[Path]) -> tuple[float, Literal["fixed", "validation"]]:
    """The threshold or beta to use, and where it comes from: the config, or tune's manifest."""
    value = parameter(segmentation)
    if not isinstance(value, Tuned):
        return value, "fixed"
    if len(tuned) != 1:
        raise InputError(f"agglomerate: a tuned value needs one manifest of tune as --tuned, got {len(tuned)}; add it")
    found = manifest.content(tuned[0], forms.Value)["value"]
    if found not in value.tune:
        raise InputError(f"{tuned[0]}: value {found} is not among the candidates {list(value.tune)}; run tune again")
    return found, "validation"


def run(section: Agglomerate, plain: dict, *, rag: Path, output: Path, tuned: list[Path]) -> None:
    """Write `lut.npy` and then the manifest beside it."""
    value, source = chosen(section.segmentation, tuned)
    started = time.monotonic()
    graphs, linked = parts(rag), lifted_parts(rag)
    inputs = {"rag": manifest.content_hash(rag)}
    if source == "validation":
        inputs["tuned"] = manifest.content_hash(tuned[0])
    if isinstance(section.segmentation, Multicut):
        graph = merge(graphs)
        far = _lifted(linked, graph, section.segmentation)
        table = of_graph(graph, section.segmentation, [value], far)[value]
        energy = {"energy": multicut.energy(graph, table, value, far)}
    else:
        table, energy = luts(graphs, section.segmentation, [value])[value], {}
    path = output.with_name(lut.NAME)
    lut.write(path, table)
    content = {
        "method": section.segmentation.method,
        "value": value,
        "source": source,
        "lut": manifest.file_sha256(path),
        "num_fragments": table.fragments.size,
        "num_segments": np.unique(table.segments).size,
        "inputs": inputs,
        **energy,
    }
    voxels = sum(int(graph.sizes.sum()) for graph in graphs)
    manifest.write(output, content, {"seconds": round(time.monotonic() - started, 3), "voxels": voxels})
