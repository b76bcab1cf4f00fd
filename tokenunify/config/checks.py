"""Combinations of sections that could only fail later: refused before any job, each with the keys that disagree."""

from tokenunify import layout
from tokenunify.config import corpus_checks, model_checks
from tokenunify.config.base import check_known, check_multiple
from tokenunify.config.file import Sections
from tokenunify.config.segmentation import Multicut, Waterz, is_tuned
from tokenunify.config.volumes import Application, Dataset
from tokenunify.geometry import long_range
from tokenunify.layout import BASELINE


def check(config: Sections) -> None:
    """Raise ValueError for the first combination of sections that cannot work."""
    for name, volume in config.volumes.items():
        if volume.shard_shape:
            check_multiple(
                f"volumes.{name}.shard_shape", volume.shard_shape, "storage.chunk_shape", config.storage.chunk_shape
            )
    for name, dataset in config.datasets.items():
        _check_dataset(config, f"datasets.{name}", dataset)
    for name, corpus in config.corpora.items():
        corpus_checks.check(config, f"corpora.{name}", corpus)
    corpus_checks.check_names(config)
    for name, pretraining in config.pretrainings.items():
        model_checks.check_pretraining(config, f"pretrainings.{name}", pretraining)
    for name, model in config.models.items():
        model_checks.check_model(config, name, model)
    for name, segmentation in config.segmentations.items():
        if name in layout.RESERVED["segmentation"] or name.startswith(BASELINE):
            reserved = [*layout.RESERVED["segmentation"]]
            raise ValueError(f"segmentations.{name}: {reserved} are reserved; choose another name")
        _check_segmentation(config, f"segmentations.{name}", segmentation, f"remove segmentations.{name}")
    if baseline := config.evaluation.baseline:
        key = "evaluation.baseline"
        _check_segmentation(config, f"{key}.segmentation", baseline.segmentation, f"set {key}: null")
    for number, shape in enumerate(config.evaluation.blockings):
        key = f"evaluation.blockings.{number}"
        check_multiple(key, shape, "storage.shard_shape", config.storage.shard_shape)
    for key, models in (config.evaluation.models or {}).items():
        check_known("evaluation.models", key, config.datasets)
        for reported in models:
            check_known(f"evaluation.models.{key}", reported, config.models)
            if (own := config.models[reported].dataset) != key:
                raise ValueError(
                    f"evaluation.models.{key} must name models of dataset {key}, got {reported} of dataset {own}; "
                    f"remove it here, or change models.{reported}.dataset"
                )


def _check_dataset(config: Sections, key: str, dataset: Dataset) -> None:
    names = {"train": [t.volume for t in dataset.train], "validation": dataset.validation, "test": dataset.test}
    for role, volumes in names.items():
        for name in volumes:
            check_known(f"{key}.{role}", name, config.volumes)
            sources = enumerate(config.volumes[name].sources)
            lacking = [f"volumes.{name}.sources.{i}" for i, s in sources if not (s.labels or s.phantom)]
            if lacking:
                raise ValueError(
                    f"{key}.{role}: volume {name} needs labels in every source, found none in {', '.join(lacking)}; "
                    "add labels there, or take the volume out of the dataset"
                )
    for role in ("train", "validation"):
        if both := set(names["test"]) & set(names[role]):
            raise ValueError(f"{key}.test and .{role} share {sorted(both)}: a test volume may do nothing else")
    for application in dataset.apply:
        _check_application(config, f"{key}.apply", key.removeprefix("datasets."), application)
    for train in dataset.train:
        shape = config.volumes[train.volume].declared_shape
        if shape and train.sections and train.sections[0] >= shape[0]:
            raise ValueError(
                f"{key}.train: sections of volume {train.volume} must begin inside its {shape[0]} sections, "
                f"got {list(train.sections)}; correct sections"
            )


def _check_application(config: Sections, key: str, dataset: str, application: Application) -> None:
    """Refuse a volume that nobody describes, and models or seeds that are not trained on the dataset."""
    check_known(key, application.volume, config.volumes)
    own = {name: model for name, model in config.models.items() if model.dataset == dataset}
    for name in own if application.models is None else application.models:
        if name not in own:
            raise ValueError(
                f"{key}: volume {application.volume} asks for model {name!r}, expected one of dataset {dataset}: "
                f"{', '.join(own) or 'it has none'}; correct models"
            )
        if lacking := set(application.seeds or ()) - set(own[name].seeds):
            raise ValueError(
                f"{key}: volume {application.volume} asks for seeds {sorted(lacking)} of model {name}, which has "
                f"{list(own[name].seeds)}; correct seeds, or add them to models.{name}.seeds"
            )


def _check_segmentation(config: Sections, key: str, segmentation: Waterz | Multicut, without: str) -> None:
    """Refuse a segmentation that the models or the storage do not allow; `without` tells how to do without it."""
    value = f"{key}.{'threshold' if isinstance(segmentation, Waterz) else 'beta'}"
    for name, model in config.models.items() if is_tuned(segmentation) else ():
        if not config.datasets[model.dataset].validation:
            raise ValueError(
                f"{value}.tune needs validation volumes, but datasets.{model.dataset} of model {name} has none; "
                f"add validation volumes, give {value} a number, or {without}"
            )
    for name, model in config.models.items() if isinstance(segmentation, Multicut) and segmentation.lifted else ():
        if not long_range(model.finetune.offsets):
            raise ValueError(
                f"{key}.lifted needs affinities of more than the nearest neighbours, but "
                f"models.{name}.finetune.offsets has only {[list(offset) for offset in model.finetune.offsets]}; "
                "add long-range offsets, or remove lifted"
            )
    if segmentation.fragments.block_shape is not None:
        check_multiple(
            f"{key}.fragments.block_shape",
            segmentation.fragments.block_shape,
            "storage.shard_shape",
            config.storage.shard_shape,
        )
