"""From affinities to segmentations: fragments, their adjacency graph, agglomeration, relabelling."""
