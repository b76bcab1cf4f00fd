"""Folders of results, and the input functions of the rules: which files of which volume a job reads."""

import re

PREDICT = "results/{volume}/{model}/seed{seed}/predict"
RUN = "results/{volume}/{model}/seed{seed}"
FRAGMENTS = f"{RUN}/fragments/{{fragments}}"
RAG = f"{RUN}/rag/{{fragments}}"
RELABEL = f"{RUN}/{{segmentation}}/relabel"


def trained_on(role):
    """Input function: the model's training or validation volumes."""

    def names(wildcards):
        dataset = explained(plan.dataset, wildcards.model)
        return volumes(t.volume for t in dataset.train) if role == "train" else volumes(dataset.validation)

    return names


def pretrained(w):
    """The pre-trained weights of the same seed that the model starts from, if any."""
    name = explained(plan.model, w.model).pretraining
    return f"models/pretrain/{name}/seed{w.seed}/weights.json" if name else []


def published(w):
    """The published weights that the model starts from, if any."""
    return f"data/weights/{w.model}.json" if explained(plan.model, w.model).weights else []


def affinity_parts(w):
    """Part manifests of the affinities, predicted or the baseline's."""
    stage = "baseline" if w.model == BASELINE else "predict"
    return parts(stage, PREDICT.format(**{k: w[k] for k in ("volume", "model", "seed")}))


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
    return f"models/{w.model}/seed{w.seed}/tune/{w.segmentation}.json" if plan.is_tuned(w.segmentation) else []


def per_run(pattern):
    """Input function: the pattern for each row of the volume's table."""
    return lambda w: [pattern.format(**vars(run)) for run in runs(w)]


def weights(w):
    """The weights behind each row; the baseline has none, its smoothed raw stands in."""
    trained = "models/{model}/seed{seed}/weights.json"
    return [(f"{PREDICT}/prepared.json" if r.model == BASELINE else trained).format(**vars(r)) for r in runs(w)]


def reported(w):
    """Every manifest behind the tables of the report."""
    rows = [run for volume in explained(plan.shown_volumes) for run in plan.runs(volume)]
    return list(dict.fromkeys(path for run in rows for path in manifests_of(run)))


def without_parts(w, input):
    """The manifests, of those of parts the first: their number is in its name, and a command's length is limited."""
    return [path for path in input.manifests if not re.match(r"part[1-9]\d*of", Path(path).name)]


def manifests_of(run):
    """Manifests of the stages that made one row."""
    fill = {**vars(run), "fragments": plan.fragments_name(run.segmentation)}
    baseline = run.model == BASELINE
    dataset = plan.config.datasets[run.dataset]
    cited = [run.volume, *(t.volume for t in dataset.train), *dataset.validation]
    pretraining = plan.pretraining_of(run.model)
    if pretraining:
        cited += plan.corpus_volumes(pretraining)
    patterns = [
        *volumes(cited),
        f"{PREDICT}/prepared.json",
        *parts("baseline" if baseline else "predict", PREDICT),
        f"{FRAGMENTS}/prepared.json",
        *parts("fragments", FRAGMENTS),
        *parts("rag", RAG),
        f"{RUN}/{{segmentation}}/agglomerate.json",
        f"{RELABEL}/prepared.json",
        *parts("relabel", RELABEL),
        f"{RUN}/{{segmentation}}/scores.json",
        *([f"{RUN}/{{segmentation}}/blockings.json"] if plan.config.evaluation.blockings else []),
        *([f"models/pretrain/{pretraining}/seed{{seed}}/weights.json"] if pretraining else []),
        *([] if baseline else ["models/{model}/seed{seed}/weights.json"]),
        *(["models/{model}/seed{seed}/tune/{segmentation}.json"] if plan.is_tuned(run.segmentation) else []),
    ]
    return [pattern.format(**fill) for pattern in patterns]
