"""The validated configuration as `plan`, what stands in front of every command, retries, GPUs, lists of files.

Nothing here decides what a stage does: that is in the configuration and in the package.
"""

import os
import shlex

from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.settings.types import DeploymentMethod, ExecMode

from tokenunify import layout
from tokenunify.config import from_dict, text
from tokenunify.errors import InputError
from tokenunify.layout import BASELINE
from tokenunify.plan import manifests
from tokenunify.plan.plan import Plan


def explained(function, *arguments):
    """Call, and show bad input as Snakemake's own one-line error."""
    try:
        return function(*arguments)
    except InputError as error:
        raise WorkflowError(str(error)) from None


def braced(text):
    """The text, as it is written where Snakemake fills in what stands in braces."""
    return str(text).replace("{", "{{").replace("}", "}}")


def environment(name):
    """The environment of a kind of rules; the path of a checkout may have braces."""
    return braced(CHECKOUT / "envs" / f"{name}.yaml")


if os.pathsep in str(CHECKOUT):
    raise WorkflowError(f"{CHECKOUT} has a {os.pathsep}, at which PYTHONPATH ends: move the checkout elsewhere")

# Snakemake keeps the last of a key's values without a word.
for file in workflow.configfiles:
    explained(text.read, file)
plan = Plan(explained(from_dict, config, " + ".join(map(str, workflow.configfiles))))

# Environments hold dependencies only, the package comes from this checkout. Jobs use the interpreter that runs
# Snakemake, unless --sdm conda gives each rule its own.
PYTHONPATH = f"export PYTHONPATH={shlex.quote(str(CHECKOUT))}; "
INTERPRETER = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"; '
# A failed job's own message is shown, but not beside the whole log, which --show-failed-logs prints.
TELL = f"source {shlex.quote(str(CHECKOUT / 'workflow/scripts/show_failure.sh'))}; "
SHOWN = workflow.output_settings.show_failed_logs or workflow.exec_mode == ExecMode.REMOTE
CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
shell.prefix(braced(("" if SHOWN else TELL) + PYTHONPATH + ("" if CONDA else INTERPRETER)))


def retry_no_bad_input():
    """A job that left a marker of bad input beside its log is not retried: it would fail again.

    Snakemake retries every failure and has no option for this. An error raised where it asks for the next attempt's
    memory would cancel all other jobs, so its property is replaced. It is asked once after each failure, and takes the
    marker away: a later attempt may be killed before it can do so. (On a cluster's node Snakemake runs once more, and
    leaves the marker to the one that submitted the job.) tests/workflow/test_snakemake.py notices when Snakemake no
    longer has the property, or no longer asks it.
    """

    def restart_times(job):
        markers = [marker for log in job.log if (marker := Path(f"{log}.bad-input")).exists()]
        for marker in markers:
            marker.unlink()
        return 0 if markers else job.rule.restart_times

    Job.restart_times = property(restart_times)


def count_gpus():
    """Where no cluster deals GPUs out, jobs that ask for `gpu` run one after another, each with all that are visible.

    The executor is not known yet while this file is read: nodes (--jobs) are given to a cluster's only.
    """
    if workflow.resource_settings.nodes is None and "gpu" not in workflow.resource_settings.resources:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        workflow.register_resource("gpu", int(bool(shown) and any(Path(os.devnull).parent.glob("nvidia[0-9]*"))))


if workflow.exec_mode == ExecMode.DEFAULT:
    retry_no_bad_input()
count_gpus()


wildcard_constraints:
    volume="[^/]+",
    pretraining="[^/]+",
    model="[^/]+",
    seed=r"\d+",
    segmentation="[^/]+",
    fragments="[^/]+",
    part=r"\d+",
    parts=r"\d+",


def need(stage):
    """The stage's resources in the configuration."""
    return plan.config.stage_resources(stage)


def memory(stage):
    """mem_mb, more with each attempt."""
    return lambda wildcards, attempt: attempt * need(stage).mem_mb


def gpus(stage):
    """GPUs of a job on each of its nodes."""
    return 0 if plan.config.device == "cpu" else need(stage).gpus


def devices(stage):
    """Resources of a training: GPUs, and where several nodes of a cluster share it, one task per GPU, or per node.

    `launch` stands in front of the command. On one node it is empty: there a job is a single task, which starts the
    processes for its GPUs itself. On several, `mpi` tells the SLURM plugin that the command starts the tasks, and
    `gres` counts the GPUs of each node. The plugin takes `tasks_per_node` for more than one only, and without
    `tasks_per_gpu` it would take `tasks` for those of each GPU.
    """
    nodes, per_node = need(stage).nodes, gpus(stage) or 1
    # A job reads this file again, on its node.
    on_cluster = workflow.resource_settings.nodes is not None or "SLURM_JOB_ID" in os.environ
    if nodes == 1 or not on_cluster:
        return {"nodes": 1, "gpu": gpus(stage), "launch": ""}
    spread = f"--nodes={nodes} --ntasks={nodes * per_node} --ntasks-per-node={per_node}"
    launch = f"srun {spread} --cpus-per-task={need(stage).threads} "
    tasks = {"tasks_per_node": per_node} if per_node > 1 else {"tasks": nodes, "tasks_per_gpu": 0}
    gres = {"gres": f"gpu:{per_node}"} if gpus(stage) else {}
    return {"nodes": nodes, **tasks, **gres, "mpi": "srun", "launch": launch}


def parts(stage):
    """Templates of the part manifests of a block-wise stage."""
    return layout.parts(stage, need(stage).parts)


def runs(wildcards):
    """The rows of the volume's table; an unknown volume is refused by name."""
    return explained(plan.runs, wildcards.volume)


def volumes(names):
    """Ingest manifests."""
    return [layout.output("ingest").format(volume=name) for name in names]
