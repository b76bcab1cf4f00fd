"""Combinations of sections that could only fail later: refused before any job, each with the keys that disagree."""

from math import prod

from tokenunify import layout
from tokenunify.config import corpus_checks
from tokenunify.config.base import check_known, check_multiple
from tokenunify.config.data import Dataset, Volume
from tokenunify.config.file import Model, Sections
from tokenunify.config.pretraining import Pretraining
from tokenunify.config.segmentation import Multicut, Waterz, is_tuned
from tokenunify.geometry import Coordinate, long_range
from tokenunify.layout import BASELINE


def check(config: Sections) -> None:
    """Raise ValueError for the first combination of sections that cannot work."""
    for name, volume in config.volumes.items():
        if volume.shard_shape:
            check_multiple(
                f"volumes.{name}.shard_shape", volume.shard_shape, "storage.chunk_shape", config.storage.chunk_shape
            )
    for name, dataset in config.datasets.items():
        _check_dataset(config, name, dataset)
    for name, corpus in config.corpora.items():
        corpus_checks.check(config, f"corpora.{name}", corpus)
    corpus_checks.check_names(config)
    for name, pretraining in config.pretrainings.items():
        _check_pretraining(config, f"pretrainings.{name}", pretraining)
    for name, model in config.models.items():
        check_known(f"models.{name}.dataset", model.dataset, config.datasets)
        if name in layout.RESERVED["model"]:
            raise ValueError(
                f"models.{name}: this name belongs to the built-in baseline or pre-training; choose another name"
            )
        _check_crops(config, name, model)
        _check_start(config, name, model)
    for name, segmentation in config.segmentations.items():
        if name in layout.RESERVED["segmentation"] or name.startswith(BASELINE):
            reserved = [*layout.RESERVED["segmentation"]]
            raise ValueError(f"segmentations.{name}: {reserved} are reserved; choose another name")
        _check_segmentation(config, f"segmentations.{name}", segmentation, f"remove segmentations.{name}")
    _check_evaluation(config)


def _check_dataset(config: Sections, name: str, dataset: Dataset) -> None:
    names = {
        "train": [t.volume for t in dataset.train],
        "validation": dataset.validation,
        "test": dataset.test,
    }
    for role, volumes in names.items():
        for volume in volumes:
            check_known(f"datasets.{name}.{role}", volume, config.volumes)
            _check_labels(f"datasets.{name}.{role}", volume, config.volumes[volume])
    for role in ("train", "validation"):
        if both := set(names["test"]) & set(names[role]):
            raise ValueError(
                f"datasets.{name}.test and .{role} share {sorted(both)}: a test volume may do nothing else"
            )
    for train in dataset.train:
        shape = _declared_shape(config.volumes[train.volume])
        if shape and train.sections and train.sections[0] >= shape[0]:
            raise ValueError(
                f"datasets.{name}.train: sections of volume {train.volume} must begin inside its {shape[0]} sections, "
                f"got {list(train.sections)}; correct sections"
            )


def _check_labels(key: str, name: str, volume: Volume) -> None:
    lacking = [f"volumes.{name}.sources.{i}" for i, s in enumerate(volume.sources) if not (s.labels or s.phantom)]
    if lacking:
        raise ValueError(
            f"{key}: volume {name} needs labels in every source, found none in {', '.join(lacking)}; "
            "add labels there, or take the volume out of the dataset"
        )


def _check_crops(config: Sections, name: str, model: Model) -> None:
    for stage, crop in (("finetune", model.finetune.crop), ("predict", model.predict.crop or model.finetune.crop)):
        try:
            model.network.output_extent(crop)
        except ValueError as error:
            raise ValueError(f"models.{name}.{stage}.crop {error}; change it or the network") from None
    _check_stride(name, model)
    for train in config.datasets[model.dataset].train:
        shape = _declared_shape(config.volumes[train.volume])
        if shape is None:
            continue
        if train.sections is not None:
            shape = (min(shape[0], train.sections[1]) - train.sections[0], *shape[1:])
        if any(c > n for c, n in zip(model.finetune.crop, shape, strict=True)):
            raise ValueError(
                f"models.{name}.finetune.crop must fit into training volume {train.volume} of shape {list(shape)}, "
                f"got {list(model.finetune.crop)}; use a smaller crop"
            )


def _check_stride(name: str, model: Model) -> None:
    crop, stride = model.predict.crop or model.finetune.crop, model.predict.stride
    output = model.network.output_extent(crop)
    if stride and any(s > n for s, n in zip(stride, output, strict=True)):
        extent = f"the crop {list(crop)}" if output == crop else f"the output {list(output)} of the crop {list(crop)}"
        raise ValueError(
            f"models.{name}.predict.stride must be at most {extent} in every axis, got {list(stride)}: "
            "voxels between two crops would not be predicted; use a smaller stride"
        )


def _check_start(config: Sections, name: str, model: Model) -> None:
    if model.pretraining is None:
        return
    check_known(f"models.{name}.pretraining", model.pretraining, config.pretrainings)
    mine, theirs = (part.network.model_dump() for part in (model, config.pretrainings[model.pretraining]))
    if differing := [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]:
        found = [{key: values.get(key) for key in differing} for values in (mine, theirs)]
        raise ValueError(
            f"models.{name}.network must be that of pretrainings.{model.pretraining}, got {found[0]} and {found[1]}: "
            "weights would not fit; make both equal"
        )


def _check_pretraining(config: Sections, key: str, pretraining: Pretraining) -> None:
    check_known(f"{key}.corpus", pretraining.corpus, config.corpora)
    crop, patch = pretraining.crop, pretraining.patch
    try:
        output = pretraining.network.output_extent(crop)
    except ValueError as error:
        raise ValueError(f"{key}.crop {error}; change it or the network") from None
    if output == crop and any(c % p for c, p in zip(crop, patch, strict=True)):
        raise ValueError(
            f"{key}.crop must be a multiple of patch {list(patch)} in every axis, got {list(crop)}: "
            "every voxel belongs to a token; change either"
        )
    if prod(o // p for o, p in zip(output, patch, strict=True)) < 2:
        raise ValueError(
            f"{key}.patch {list(patch)} must fit twice or more into the network's output {list(output)}: "
            "one token is predicted from others; use smaller patches or a larger crop"
        )
    corpus_checks.check_room(config, f"{key}.corpus", config.corpora[pretraining.corpus], crop)


def _declared_shape(volume: Volume) -> Coordinate | None:
    if volume.roi is not None:
        return volume.roi.shape
    phantom = volume.sources[0].phantom
    return phantom.shape if phantom else None


def _check_segmentation(config: Sections, key: str, segmentation: Waterz | Multicut, without: str) -> None:
    """`without` tells how to do without the segmentation."""
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


def _check_evaluation(config: Sections) -> None:
    if baseline := config.evaluation.baseline:
        key = "evaluation.baseline"
        _check_segmentation(config, f"{key}.segmentation", baseline.segmentation, f"set {key}: null")
    for number, shape in enumerate(config.evaluation.blockings):
        key = f"evaluation.blockings.{number}"
        check_multiple(key, shape, "storage.shard_shape", config.storage.shard_shape)
    for dataset, models in (config.evaluation.models or {}).items():
        check_known("evaluation.models", dataset, config.datasets)
        for model in models:
            check_known(f"evaluation.models.{dataset}", model, config.models)
            if (own := config.models[model].dataset) != dataset:
                raise ValueError(
                    f"evaluation.models.{dataset} must name models of dataset {dataset}, got {model} of dataset {own}; "
                    f"remove it here, or change models.{model}.dataset"
                )
