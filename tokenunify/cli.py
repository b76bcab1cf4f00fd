"""The command line: `python -m tokenunify <stage>` runs one stage of the workflow."""

import argparse
import importlib
import io
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenunify import config, failures, layout
from tokenunify.errors import InputError
from tokenunify.plan import catalogue, estimate
from tokenunify.stages import sections
from tokenunify.stages.table import STAGES
from tokenunify.store.blockwise import parse_part

logger = logging.getLogger(__name__)


DEFAULT_CONFIG = Path("config/config.yaml")
PRINTING = ("schema", "networks", "plan", "datasets")
"""Commands whose result is what they print."""


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    top = argparse.ArgumentParser(prog="tokenunify", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    for name, stage in STAGES.items():
        sub = _add(commands, name, stage.help)
        sub.add_argument("--config-json", required=True, help="the stage's section, as Snakemake prints it")
        for path in stage.paths:
            sub.add_argument(f"--{path}", type=output_file if path == "output" else Path, required=True)
        for paths in stage.lists:
            sub.add_argument(f"--{paths}", type=Path, nargs="*", default=[])
        for number in stage.numbers:
            sub.add_argument(f"--{number}", type=NUMBERS[number], required=True)
        if stage.blockwise:
            sub.add_argument(
                "--part", type=ith_of_n, default=(0, 1), help="i/n: the i-th, from 0, of n ranges of blocks"
            )
        if stage.device:
            sub.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
        if stage.permit:
            sub.add_argument("--permit", default="{}", help="what downloads are allowed to do, as Snakemake prints it")
        _add_marker(sub)
    prepare = _add(commands, "prepare", "make the empty store of a block-wise stage")
    prepare.add_argument("--stage", required=True, choices=[name for name, stage in STAGES.items() if stage.store])
    prepare.add_argument("--config-json", required=True)
    prepare.add_argument("--inputs", type=Path, nargs="+", required=True, help="the input that gives the shape first")
    prepare.add_argument("--output", type=output_file, required=True)
    _add_marker(prepare)
    clean = _add(commands, "clean", "remove stores and training states that no manifest refers to")
    clean.add_argument("folders", type=Path, nargs="+", help="results, models, data: searched for stale stores")
    clean.add_argument("--dry-run", action="store_true", help="only list them")
    table = _add(commands, "networks", "print a table of the networks: parameters, legal crops, cost of a crop")
    _add_configfile(table, [], "the networks of its models instead")
    volumes = _add(commands, "datasets", "print a table of the volumes: size, licence, who uses them, what is here")
    _add_configfile(volumes, [DEFAULT_CONFIG])
    plan = _add(commands, "plan", "print what a table of scores will take: jobs, bytes, memory and hours of each stage")
    plan.add_argument("target", help=layout.output("metrics").format(volume="VOLUME"))
    _add_configfile(plan, [DEFAULT_CONFIG])
    plan.add_argument("--costs", type=Path, default=estimate.COSTS, help="what benchmarks/costs.py has measured")
    plan.add_argument(
        "--throughput",
        type=stage_throughput,
        nargs="+",
        default=[],
        metavar="STAGE=VOXELS_PER_SECOND",
        help="of one job, in place of what was measured; of a training, the voxels of its crops",
    )
    plan.add_argument(
        "--voxels", type=number_of_voxels, nargs="*", default=estimate.SIZES, help="sizes of the volume beside its own"
    )
    _add(commands, "schema", "print the JSON schema of the configuration file")
    return top


class _Parser(argparse.ArgumentParser):
    """A subcommand's parser; the help of a stage ends with its section's schema, which is made when it is asked for."""

    def format_help(self) -> str:
        if (stage := self.prog.split()[-1]) in sections.SECTIONS:
            schema = json.dumps(sections.SECTIONS[stage].model_json_schema(), indent=1)
            self.epilog = f"schema of --config-json:\n{schema}"
        return super().format_help()


def _add(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=help, description=help, formatter_class=form)


def _add_marker(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--marker", type=Path, help="empty file that is made if the input is bad: do not run again")


def _add_configfile(sub: argparse.ArgumentParser, default: list[Path], what: str = "as Snakemake takes them") -> None:
    sub.add_argument("--configfile", type=Path, nargs="+", default=default, help=f"configuration files: {what}")


def output_file(text: str) -> Path:
    """An argument that names a file to write."""
    if Path(text).name and "\0" not in text:
        return Path(text)
    raise argparse.ArgumentTypeError(f"expected the name of a file, got {text!r}")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if text.isdecimal() and len(text) < 20 and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text[:20]!r}")

    return number


NUMBERS = {"seed": _at_least(0), "threads": _at_least(1)}


def ith_of_n(text: str) -> tuple[int, int]:
    """The argument i/n."""
    try:
        return parse_part(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None  # argparse hides the words of a ValueError


def number_of_voxels(text: str) -> float:
    """An argument such as 1e9."""
    try:
        if 1 <= float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number of voxels such as 1e9, got {text[:20]!r}")


def stage_throughput(text: str) -> tuple[str, float]:
    """The argument STAGE=VOXELS_PER_SECOND."""
    stage, _, speed = text.partition("=")
    try:
        if stage in sections.SECTIONS and float(speed) > 0:
            return stage, float(speed)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected STAGE=VOXELS_PER_SECOND such as predict=1e6, got {text!r}")


def run(arguments: argparse.Namespace) -> None:
    """Run the chosen subcommand."""
    given = {key: value for key, value in vars(arguments).items() if key not in ("command", "marker")}
    if arguments.command == "schema":
        sys.stdout.write(config.schema_text())
    elif arguments.command in ("prepare", "clean"):
        importlib.import_module(f"tokenunify.store.{arguments.command}").run(**given)
    elif arguments.command == "plan":
        estimate.run(**given)
    elif arguments.command == "datasets":
        catalogue.run(**given)
    elif arguments.command == "networks":
        importlib.import_module("tokenunify.learning.summary").run(**given)
    else:
        section, plain = sections.from_json(arguments.command, given.pop("config_json"))
        module = importlib.import_module(f"tokenunify.{STAGES[arguments.command].module}")
        if "permit" in given:
            given["permit"] = sections.permit(given["permit"])
        module.run(section, plain, **given)


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 on success, 1 when a message tells what went wrong, 141 when nobody reads what is printed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # When one read of a store fails, zarr drops the others unfinished: their complaints would bury the message.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a letter of a licence's name
    arguments = parser().parse_args(argv)
    started, marker = time.monotonic(), getattr(arguments, "marker", None)
    try:
        if marker:
            marker.unlink(missing_ok=True)
        run(arguments)
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and arguments.command in PRINTING:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
            return 128 + signal.SIGPIPE
        if marker and isinstance(error, InputError):
            marker.touch()
        logger.error("%s", failures.explain(error))
        return 1
    if arguments.command not in (*PRINTING, "clean"):
        logger.info("%s finished in %.1f s", arguments.command, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
