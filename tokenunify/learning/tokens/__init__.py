"""Pre-training: objectives on patches of unlabelled volumes."""
