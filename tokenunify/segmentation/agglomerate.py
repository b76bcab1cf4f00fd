"""Stage agglomerate: fragments to segments on the graph, at a given or tuned threshold or beta."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tokenunify import manifest
from tokenunify.config import Multicut, Tuned, Waterz
from tokenunify.errors import InputError
from tokenunify.segmentation import hierarchy, lut, multicut, waterz
from tokenunify.segmentation.graph import Rag, Stored, merge
from tokenunify.segmentation.rag import parts
from tokenunify.stages import Agglomerate


def parameter(segmentation: Waterz | Multicut) -> float | Tuned:
    """What is tuned or given: waterz's threshold, the multicut's beta."""
    return segmentation.threshold if isinstance(segmentation, Waterz) else segmentation.beta


def luts(
    graphs: Sequence[Rag | Stored], segmentation: Waterz | Multicut, values: Sequence[float]
) -> dict[float, lut.Lut]:
    """Table at each threshold or beta, from the graphs of all parts."""
    if isinstance(segmentation, Waterz) and segmentation.hierarchy is not None:
        return hierarchy.agglomerate(graphs, values, segmentation.score, segmentation.hierarchy)
    return of_graph(merge(graphs), segmentation, values)


def of_graph(graph: Rag, segmentation: Waterz | Multicut, values: Sequence[float]) -> dict[float, lut.Lut]:
    """Table at each threshold or beta, from the graph of the whole volume."""
    if isinstance(segmentation, Waterz):
        return waterz.agglomerate(graph, values, segmentation.score)
    return {beta: multicut.agglomerate(graph, beta, segmentation.solver) for beta in values}


def chosen(segmentation: Waterz | Multicut, tuned: Sequence[Path]) -> tuple[float, Literal["fixed", "validation"]]:
    """The threshold or beta to use, and where it comes from: the config, or tune's manifest."""
    value = parameter(segmentation)
    if not isinstance(value, Tuned):
        return value, "fixed"
    if len(tuned) != 1:
        raise InputError(f"agglomerate: a tuned value needs one manifest of tune as --tuned, got {len(tuned)}; add it")
    found = manifest.content(tuned[0])["value"]
    if found not in value.tune:
        raise InputError(f"{tuned[0]}: value {found} is not among the candidates {list(value.tune)}; run tune again")
    return found, "validation"


def run(section: Agglomerate, plain: dict, *, rag: Path, output: Path, tuned: list[Path]) -> None:
    """Write `lut.npz` and then the manifest beside it."""
    value, source = chosen(section.segmentation, tuned)
    started = time.monotonic()
    graphs = parts(rag)
    inputs = {"rag": manifest.content_hash(rag)}
    if source == "validation":
        inputs["tuned"] = manifest.content_hash(tuned[0])
    if isinstance(section.segmentation, Multicut):
        graph = merge(graphs)
        table = of_graph(graph, section.segmentation, [value])[value]
        energy = {"energy": multicut.energy(graph, table, value)}
    else:
        table, energy = luts(graphs, section.segmentation, [value])[value], {}
    path = output.with_name("lut.npz")
    lut.write(path, table)
    content = {
        "method": section.segmentation.method,
        "value": value,
        "source": source,
        "lut": manifest.file_sha256(path),
        "num_fragments": table.fragments.size,
        "num_segments": len(set(table.segments.tolist())),
        "inputs": inputs,
        **energy,
    }
    voxels = sum(int(graph.sizes.sum()) for graph in graphs)
    manifest.write(output, content, {"seconds": round(time.monotonic() - started, 3), "voxels": voxels})
