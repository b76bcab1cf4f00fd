"""From EM volumes to tables of segmentation scores: the entry point."""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")
# Not workflow.basedir: as a module of another workflow, this file lies elsewhere.
CHECKOUT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True))
sys.path.insert(0, str(CHECKOUT))

if not workflow.configfiles:

    configfile: CHECKOUT / "config/config.yaml"


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
        expand(layout.output("segmentations"), volume=plan.applied_volumes),
        layout.output("report"),
