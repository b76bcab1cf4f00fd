"""Networks that could only fail later: crops that they cannot take or find, and weights that do not fit."""

from math import prod

from tokenunify import layout
from tokenunify.config import corpus_checks
from tokenunify.config.base import check_known
from tokenunify.config.file import Model, Sections
from tokenunify.config.pretraining import Pretraining


def check_pretraining(config: Sections, key: str, pretraining: Pretraining) -> None:
    """Refuse a pre-training whose crops make no tokens, or have no place in its corpus."""
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


def check_model(config: Sections, name: str, model: Model) -> None:
    """Refuse a model whose name, data set, crops or start cannot be used."""
    key = f"models.{name}"
    check_known(f"{key}.dataset", model.dataset, config.datasets)
    if name in layout.RESERVED["model"]:
        raise ValueError(f"{key}: this name belongs to the built-in baseline or pre-training; choose another name")
    crop, stride = model.predict.crop or model.finetune.crop, model.predict.stride
    for stage, extent in (("finetune", model.finetune.crop), ("predict", crop)):
        try:
            model.network.output_extent(extent)
        except ValueError as error:
            raise ValueError(f"{key}.{stage}.crop {error}; change it or the network") from None
    output = model.network.output_extent(crop)
    if stride and any(s > n for s, n in zip(stride, output, strict=True)):
        most = f"the crop {list(crop)}" if output == crop else f"the output {list(output)} of the crop {list(crop)}"
        raise ValueError(
            f"{key}.predict.stride must be at most {most} in every axis, got {list(stride)}: "
            "voxels between two crops would not be predicted; use a smaller stride"
        )
    for train in config.datasets[model.dataset].train:
        shape = config.volumes[train.volume].declared_shape
        if shape is None:
            continue
        if train.sections is not None:
            shape = (min(shape[0], train.sections[1]) - train.sections[0], *shape[1:])
        if any(c > n for c, n in zip(model.finetune.crop, shape, strict=True)):
            raise ValueError(
                f"{key}.finetune.crop must fit into training volume {train.volume} of shape {list(shape)}, "
                f"got {list(model.finetune.crop)}; {model.network.smaller_crop(model.finetune.crop, shape)}"
            )
    if model.pretraining is None:
        return
    check_known(f"{key}.pretraining", model.pretraining, config.pretrainings)
    mine, theirs = (part.network.model_dump() for part in (model, config.pretrainings[model.pretraining]))
    if differing := [option for option in {**mine, **theirs} if mine.get(option) != theirs.get(option)]:
        found = [{option: values.get(option) for option in differing} for values in (mine, theirs)]
        raise ValueError(
            f"{key}.network must be that of pretrainings.{model.pretraining}, got {found[0]} and {found[1]}: "
            "weights would not fit; make both equal"
        )
