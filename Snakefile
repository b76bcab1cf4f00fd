"""From EM volumes to tables of segmentation scores: the entry point."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")
sys.path.insert(0, workflow.basedir)

from tokenunify import layout
from tokenunify.config import from_dict, text
from tokenunify.errors import InputError
from tokenunify.layout import BASELINE
from tokenunify.plan import manifests
from tokenunify.plan.plan import Plan

if not workflow.configfiles:

    configfile: Path(workflow.basedir, "config/config.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/learning.smk"
include: "workflow/rules/segmentation.smk"
include: "workflow/rules/evaluation.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        expand(layout.output("metrics"), volume=plan.test_volumes),
        layout.output("report"),
