"""The input functions of the rules: which files of which volume a job reads."""


def trained_on(role):
    """Input function: the model's training or validation volumes."""

    def names(wildcards):
        dataset = explained(plan.dataset, wildcards.model)
        return volumes(t.volume for t in dataset.train) if role == "train" else volumes(dataset.validation)

    return names


def pretrained(w):
    """The pre-trained weights of the same seed that the model starts from, if any."""
    name = explained(plan.model, w.model).pretraining
    return layout.output("pretrain").format(pretraining=name, seed=w.seed) if name else []


def published(w):
    """The published weights that the model starts from, if any."""
    return layout.output("download_weights").format(**w) if explained(plan.model, w.model).weights else []


def affinity_parts(w):
    """Part manifests of the affinities, predicted or the baseline's."""
    return [path.format(**w) for path in parts("baseline" if w.model == BASELINE else "predict")]


def for_fragments(pattern):
    """Input function: the pattern with the fragments of the segmentation filled in."""
    return lambda w: [p.format(fragments=plan.fragments_name(w.segmentation), **w) for p in pattern]


def on_validation(pattern):
    """Input function: the pattern for each volume that chooses a tuned value."""

    def paths(w):
        names, fragments = plan.validation_volumes(w.model, w.segmentation), plan.fragments_name(w.segmentation)
        return [p.format(volume=v, fragments=fragments, **w) for v in names for p in pattern]

    return paths


def tuned(w):
    """The choice on the validation volumes, where the configuration gives candidates."""
    return layout.output("tune").format(**w) if plan.is_tuned(w.segmentation) else []


def per_run(pattern):
    """Input function: the pattern for each row of the volume's table."""
    return lambda w: [pattern.format(**vars(run)) for run in runs(w)]


def weights(w):
    """The weights behind each row; the baseline has none, its smoothed raw stands in."""
    smoothed, trained = layout.prepared("baseline"), layout.output("finetune")
    return [(smoothed if run.model == BASELINE else trained).format(**vars(run)) for run in runs(w)]


def segmented(w):
    """Every manifest behind the volume's table of segmentations."""
    return explained(manifests.of_segmentations, plan, w.volume)


def reported(w):
    """Every manifest behind the tables of the report."""
    return explained(manifests.of_report, plan)


def without_parts(w, input):
    """The manifests, of those of parts the first: their number is in its name, and a command's length is limited."""
    return [path for path in input.manifests if not layout.is_later_part(path)]
