"""A stage is added by a record, a section, a path, a module and a rule, and by nothing else."""

import json

import pytest

from tests.workflow.conftest import Checkout

pytestmark = pytest.mark.workflow

RECORD = """
STAGES["sizes"] = Stage(
    version=1,
    module="evaluation.sizes",
    help="count the segments of a least size",
    paths=("lut", "output"),
    resources={"mem_mb": 1000},
)
"""
SECTION = """
class Sizes(Strict):
    least: int


SECTIONS: dict"""
MODULE = '''
"""Stage sizes."""

from tokenunify.store import manifest


def run(section, plain, *, lut, output):
    """Write what it was told."""
    manifest.write(output, {"config": plain, "least": section.least, "inputs": {"lut": manifest.content_hash(lut)}})
'''
RULE = """
from tokenunify.stages import sections


rule sizes:
    input:
        layout.output("agglomerate"),
    output:
        layout.output("sizes"),
    log:
        "logs/sizes/{volume}.{model}.seed{seed}.{segmentation}.log",
    conda:
        environment("segmentation")
    threads: need("sizes").threads
    resources:
        mem_mb=memory("sizes"),
        runtime=need("sizes").runtime,
    params:
        config=sections.to_json("sizes", sections.Sizes(least=7)),
    shell:
        "python -m tokenunify sizes"
        " --config-json {params.config:q}"
        " --lut {input:q}"
        " --output {output:q}"
        " &> {log:q}"
"""
PLACE = """
OUTPUTS["sizes"] = f"{SEGMENTATION}/sizes.json"
"""


def append(checkout: Checkout, path: str, text: str) -> None:
    with open(checkout.path / path, "a") as file:
        file.write(text)


def test_a_stage_is_added(finished: Checkout, tmp_path):
    checkout = finished.copy(tmp_path / "tokenunify")
    append(checkout, "tokenunify/stages/table.py", RECORD)
    sections = checkout.path / "tokenunify/stages/sections.py"
    sections.write_text(sections.read_text().replace("\nSECTIONS: dict", SECTION, 1))
    append(checkout, "tokenunify/layout.py", PLACE)
    (checkout.path / "tokenunify/evaluation/sizes.py").write_text(MODULE)
    append(checkout, "workflow/rules/evaluation.smk", RULE)
    checkout.edit(lambda config: config["resources"].update(sizes={"mem_mb": 500}))
    target = "results/tiny/small/seed0/multicut/sizes.json"
    assert [job.rule for job in checkout.planned(target)] == ["sizes"]
    assert "mem_mb=500" in checkout.snakemake(target).stderr
    made = json.loads((checkout.path / target).read_text())["content"]
    assert (made["least"], made["config"]) == (7, {"least": 7, "version": 1})
