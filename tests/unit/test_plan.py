"""What the workflow asks of the configuration."""

import json
from pathlib import Path

import pytest
import yaml

from tokenunify import config
from tokenunify.errors import InputError
from tokenunify.plan.plan import Plan
from tokenunify.stages import sections
from tokenunify.stages.table import STAGES


@pytest.fixture(scope="module")
def plan(root: Path) -> Plan:
    return Plan(config.load(root / "config/config.yaml"))


def test_runs_of_the_test_volume(plan: Plan):
    runs = plan.runs("wafer36-2")
    assert {(run.dataset, run.split) for run in runs} == {("mec", "test")}
    assert [run.model for run in runs].count("superhuman") == 3 * len(plan.config.segmentations)
    assert (runs[-1].model, runs[-1].segmentation) == ("raw-watershed", "raw-watershed-mec")


def test_validation_volume_has_a_table_and_training_volumes_have_none(plan: Plan):
    assert {run.split for run in plan.runs("wafer4")} == {"validation"}
    with pytest.raises(InputError, match=r"volumes with a table: ac3, .*, wafer36-2, wafer4"):
        plan.runs("wafer25")


def test_volumes_without_runs_are_not_listed_as_having_a_table(plan: Plan):
    other = config.Dataset(train=("wafer25",), validation=("wafer26",), test=("wafer26-2",))
    datasets = {**plan.config.datasets, "other": other}
    with pytest.raises(
        InputError, match=r"volumes with a table: ac3, .*, wafer36-2, wafer4\. .*of a dataset with models"
    ):
        Plan(plan.config.model_copy(update={"datasets": datasets})).runs("wafer26")


def test_equal_fragments_settings_share_a_folder(plan: Plan):
    assert plan.fragments_name("waterz") == plan.fragments_name("waterz-tuned") != plan.fragments_name("multicut")


def test_sections_carry_the_version_and_sorted_keys(plan: Plan):
    texts = {
        "download": plan.download("wafer4"),
        "ingest": plan.ingest("wafer4"),
        "pretrain": plan.pretrain("tokenunify"),
        "finetune": plan.finetune("superhuman"),
        "predict": plan.predict("superhuman"),
        "baseline": plan.baseline(),
        "fragments": plan.fragments(plan.fragments_name("multicut")),
        "rag": plan.rag(plan.fragments_name("waterz")),
        "tune": plan.tune("waterz-tuned"),
        "agglomerate": plan.agglomerate("waterz"),
        "relabel": plan.relabel(),
        "evaluate": plan.evaluate(),
        "blockings": plan.blockings("waterz"),
        "metrics": plan.metrics("wafer36-2"),
        "segmentations": plan.table_of_segmentations("wafer36-2"),
        "report": plan.report(),
    }
    assert texts.keys() == STAGES.keys() == sections.SECTIONS.keys()
    for stage, text in texts.items():
        plain = json.loads(text)
        assert plain["version"] == STAGES[stage].version
        assert list(plain) == sorted(plain)
        section, again = sections.from_json(stage, text)
        assert sections.to_json(stage, section) == text
        assert again == plain


def test_histograms_are_counted_where_a_score_needs_them(root: Path):
    waterz = {"method": "waterz", "fragments": {"threshold": 0.4}}
    demo = yaml.safe_load((root / "config/demo.yaml").read_text())
    segmentations = {"a": waterz, "b": {**waterz, "score": "hist75"}, "c": {"method": "waterz"}}
    plan = Plan(config.from_dict({**demo, "segmentations": segmentations}))
    counted = {name: json.loads(plan.rag(plan.fragments_name(name)))["histograms"] for name in segmentations}
    assert counted == {"a": True, "b": True, "c": False}


def test_all_channels_and_long_range_pairs_where_a_multicut_is_lifted(root: Path):
    demo = yaml.safe_load((root / "config/demo.yaml").read_text())
    offsets = [*map(list, config.NEAREST), [-2, 0, 0], [0, -9, 0], [0, 0, -9]]
    demo["finetune"]["offsets"] = offsets
    segmentations = {"a": {"method": "multicut"}, "b": {"method": "waterz"}}
    plain = Plan(config.from_dict({**demo, "segmentations": segmentations}))
    segmentations["a"] = {"method": "multicut", "lifted": True}
    lifted = Plan(config.from_dict({**demo, "segmentations": segmentations}))
    model = next(iter(demo["models"]))
    assert json.loads(lifted.predict(model)) == {**json.loads(plain.predict(model)), "offsets": offsets}
    for name, wanted in (("a", {"lifted": True}), ("b", {})):
        found = json.loads(lifted.rag(lifted.fragments_name(name)))
        assert found == {**json.loads(plain.rag(plain.fragments_name(name))), **wanted}
    for text in (plain.predict(model), plain.rag(plain.fragments_name("a")), plain.agglomerate("a")):
        assert not {"offsets", "lifted"} & {*json.loads(text), *json.loads(text).get("segmentation", {})}
    assert json.loads(lifted.agglomerate("a"))["segmentation"]["lifted"]
    assert lifted.baseline() == plain.baseline()


def test_agglomerate_does_not_see_the_fragments_setting(root: Path):
    """Fragments are an input: their setting must not make the agglomeration stale by itself."""
    value = config.load(root / "config/config.yaml")
    other = value.segmentations["waterz"].model_copy(update={"fragments": config.Fragments(min_size=7)})
    changed = value.model_copy(update={"segmentations": {**value.segmentations, "waterz": other}})
    assert Plan(changed).agglomerate("waterz") == Plan(value).agglomerate("waterz")
    assert Plan(changed).fragments_name("waterz") != Plan(value).fragments_name("waterz")


def test_a_pasted_command_may_not_have_two_blocks_in_one_file():
    grid = {"chunk_shape": (4, 8, 8), "shard_shape": (8, 8, 16)}
    with pytest.raises(ValueError, match="block_shape must be a multiple of shard_shape"):
        sections.Relabel(**grid, block_shape=(4, 8, 16))
    with pytest.raises(ValueError, match="shard_shape must be a multiple of chunk_shape"):
        sections.Relabel(**{**grid, "shard_shape": (6, 8, 16)}, block_shape=(6, 8, 16))


def test_default_crop_and_stride(root: Path):
    value = json.loads(Plan(config.load(root / "tests/config/tiny.yaml")).predict("small"))
    assert (value["crop"], value["stride"]) == ([4, 24, 24], [2, 12, 12])


def test_default_stride_is_half_the_output_of_valid_convolutions(root: Path):
    value = config.load(root / "tests/config/tiny.yaml")
    model = value.models["small"]
    valid = model.model_copy(
        update={"network": config.Mala(), "predict": model.predict.model_copy(update={"crop": (53, 268, 268)})}
    )
    plan = Plan(value.model_copy(update={"models": {"small": valid}}))
    assert json.loads(plan.predict("small"))["stride"] == [12, 28, 28]


def started(plan: Plan, **keys) -> Plan:
    """The plan with the model superhuman started elsewhere."""
    models = dict(plan.config.models)
    models["superhuman"] = models["superhuman"].model_copy(update=keys)
    return Plan(plan.config.model_copy(update={"models": models}))


def test_finetune_knows_what_a_model_starts_from(plan: Plan):
    for keys, start in (
        ({"pretraining": "mae-superhuman"}, "mae-superhuman"),
        ({"weights": config.WeightsSource(path="a.pt")}, "published"),
    ):
        changed = started(plan, **keys)
        assert json.loads(changed.finetune("superhuman"))["start"] == start
        rows = json.loads(changed.metrics("wafer36-2"))["rows"]
        assert {row["pretraining"] for row in rows if row["model"] == "superhuman"} == {start}
        assert {row["pretraining"] for row in rows if row["model"] == config.BASELINE} == {"none"}


def test_adapters_matter_only_where_they_are_trained(plan: Plan):
    lora = config.Lora(rank=4)
    assert json.loads(started(plan, lora=lora).finetune("superhuman"))["lora"] is None
    assert json.loads(started(plan, lora=lora, train="lora").finetune("superhuman"))["lora"]["rank"] == 4


def test_published_weights_are_a_download(plan: Plan):
    changed = started(plan, weights=config.WeightsSource(path="a.pt", sha256="0" * 64))
    (source,) = json.loads(changed.download_weights("superhuman"))["sources"]
    assert (source["path"], source["sha256"]) == ("a.pt", "0" * 64)
    with pytest.raises(InputError, match=r"superhuman has no published weights; add models\.superhuman\.weights"):
        plan.download_weights("superhuman")


@pytest.mark.parametrize("kind", ["volume", "model"])
def test_unknown_names_are_told_with_the_known(plan: Plan, kind: str):
    with pytest.raises(InputError, match=rf"unknown {kind} 'typo', the configuration has .*(superhuman|wafer4)"):
        {"volume": plan.ingest, "model": plan.dataset}[kind]("typo")


APPLIED = {
    "volumes": {
        name: {"sources": [{"phantom": {"seed": 1, "shape": [8, 32, 32]}}], "voxel_size_nm": [35, 8, 8]}
        for name in "abcd"
    },
    "datasets": {"d": {"train": ["a"], "validation": ["b"], "test": ["c"]}},
    "models": {name: {"network": {"name": "superhuman"}, "dataset": "d", "seeds": [3, 4]} for name in ("one", "two")},
    "segmentations": {"waterz": {"method": "waterz", "threshold": 0.5}},
    "finetune": {"crop": [8, 32, 32]},
}


def applied(*entries) -> Plan:
    return Plan(config.from_dict({**APPLIED, "datasets": {"d": {**APPLIED["datasets"]["d"], "apply": list(entries)}}}))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("d", [("one", 3), ("two", 3)]),
        ({"volume": "d", "models": ["two"]}, [("two", 3)]),
        ({"volume": "d", "seeds": [4, 3]}, [("one", 4), ("one", 3), ("two", 4), ("two", 3)]),
    ],
)
def test_a_volume_is_segmented_by_the_models_that_are_named(entry, expected):
    found = applied(entry).segmented("d")
    assert [(run.model, run.seed) for run in found] == expected
    assert {(run.dataset, run.split, run.segmentation) for run in found} == {("d", "apply", "waterz")}


def test_a_test_volume_that_is_also_applied_to_has_each_row_once():
    plan = applied({"volume": "c", "seeds": [4]})
    assert plan.segmented("c") == plan.runs("c")
    assert applied().segmented("b") == applied().runs("b")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("e", "datasets.d.apply"),
        ({"volume": "d", "models": ["three"]}, "volume d asks for model 'three', expected one of dataset d: one, two"),
        ({"volume": "d", "seeds": [5, 3]}, r"volume d asks for seeds \[5\] of model one, which has \[3, 4\]"),
    ],
)
def test_an_application_that_cannot_be_is_refused(entry, words):
    with pytest.raises(InputError, match=words):
        applied(entry)


def test_scores_that_are_not_reported_leave_applications_as_they_are():
    """evaluation.models chooses the rows of scores alone; a dataset without models has no applied volumes."""
    datasets = {"d": {**APPLIED["datasets"]["d"], "apply": ["d"]}, "e": {"train": ["a"], "apply": ["b"]}}
    plan = Plan(config.from_dict({**APPLIED, "datasets": datasets, "evaluation": {"models": {"d": ["one"]}}}))
    assert [run.model for run in plan.segmented("d")] == ["one", "two"]
    assert plan.applied_volumes == ["d"]
