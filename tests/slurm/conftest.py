"""A real SLURM for the tests, of two nodes on one machine: started by the first test that asks, stopped at the end."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "scancel")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
NODES = ("node", "other")
"""Both are this machine; the first alone has GPUs."""
NUM_CPUS = 8
MEMORY_MB = 256_000  # more than there is: a test must not wait for memory that its jobs ask for and never use
GPU_FILES = ("/dev/null", "/dev/zero")  # any device files: SLURM only counts and hands them out


@dataclass
class Cluster:
    """A running cluster: the folder with its configuration, sockets and logs, and its daemons."""

    folder: Path
    daemons: list[subprocess.Popen] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which sbatch, squeue and the others reach this cluster."""
        own = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **own, "PATH": f"{self.folder / 'bin'}:{PATH}"}

    def command(self, *words: str) -> str:
        """Output of a SLURM command."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}{self.logs()}")
        return done.stdout

    def jobs(self, **wanted: str) -> list[dict[str, str]]:
        """What SLURM knows of its jobs, finished ones included: those whose fields have the values in `wanted`."""
        lines = self.command("scontrol", "show", "jobs", "--oneliner").splitlines()
        jobs = [_fields(line) for line in lines if line.startswith("JobId=")]
        return [job for job in jobs if all(job.get(key) == value for key, value in wanted.items())]

    def logs(self) -> str:
        """Last lines of the daemons' logs, for messages."""
        tails = [(path.name, path.read_text().splitlines()[-15:]) for path in sorted(self.folder.glob("*.log"))]
        return "".join(f"\n--- {name}\n" + "\n".join(lines) for name, lines in tails)

    def start(self) -> None:
        """Start authentication, controller and nodes, and wait until the nodes take jobs."""
        _write_configuration(self.folder)
        munge = self.folder / "munge"
        paths = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        self._start("munged", "--foreground", "--force", *(f"--{key}={munge / name}" for key, name in paths.items()))
        _wait(lambda: (munge / "socket").exists(), 20, "munged made no socket", self)
        self._start("slurmctld", "-D", "-i")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node, log=f"slurmd-{node}")
        _wait(lambda: self._idle() == set(NODES), 60, "a node is not idle", self)

    def stop(self) -> None:
        """Cancel what runs, wait until it has ended, and end the daemons."""
        subprocess.run(["scancel", "--user=root"], env=self.environment, timeout=60, check=False)
        deadline = time.monotonic() + 30
        while self._output("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, *words: str, log: str | None = None) -> None:
        with open(self.folder / f"{log or words[0]}.log", "w") as file:
            self.daemons.append(subprocess.Popen(words, env=self.environment, stdout=file, stderr=file))

    def _idle(self) -> set[str]:
        return set(self._output("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split())

    def _output(self, *words: str) -> str:
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60).stdout


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _wait(condition, seconds: float, message: str, cluster: Cluster) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        dead = [daemon.args[0] for daemon in cluster.daemons if daemon.poll() is not None]
        if dead or time.monotonic() > deadline:
            raise RuntimeError(f"{message} (ended: {dead}){cluster.logs()}")
        time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _write_configuration(folder: Path) -> None:
    for name in ("bin", "munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    # Inside a job the plugin starts srun without any SLURM_ variable, so srun needs another way to its configuration.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=PATH)} "$@"\n')
    srun.chmod(0o755)
    gpus = [f"NodeName={NODES[0]} Name=gpu File={device}" for device in GPU_FILES]
    (folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *gpus, ""]))
    controller, *ports = _free_ports(1 + len(NODES))
    machine = f"NodeHostname={socket.gethostname().split('.')[0]} NodeAddr=127.0.0.1"
    offered = f"CPUs={NUM_CPUS} RealMemory={MEMORY_MB} State=UNKNOWN"
    first, other = (f"NodeName={node} Port={port} {machine} {offered}" for node, port in zip(NODES, ports, strict=True))
    (folder / "slurm.conf").write_text(f"""\
ClusterName=test
SlurmctldHost={socket.gethostname().split(".")[0]}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=86400
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
KillWait=5
GresTypes=gpu
{first} Gres=gpu:{len(GPU_FILES)}
{other}
PartitionName=main Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
""")


def _missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not found: apt-get update && apt-get install -y slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs only as root: run the tests as root, for instance in a container"
    return None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A SLURM of two nodes, and 2 GPUs that are none on one; with TOKENUNIFY_REQUIRE_SLURM=1 it is never skipped."""
    if reason := _missing():
        if os.environ.get("TOKENUNIFY_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need a short path
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def submit(cluster: Cluster, root: Path):
    """Run Snakemake with the shipped profile on the test cluster; its results and output.txt go to `directory`.

    `variables` are set in its environment. Returns the finished process, whose output an AssertionError shows where it
    failed, or, with `background`, the running one, which is killed at the end of the session at the latest.
    """
    started: list[subprocess.Popen] = []

    def run(
        *words, directory: Path, check=True, background=False, **variables: str
    ) -> subprocess.CompletedProcess | subprocess.Popen:
        own = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "6"]
        words = (*own, *words, "--profile", "slurm", "--latency-wait", "10", "--directory", directory)
        command = [sys.executable, "-m", "snakemake", *map(str, words)]
        output = directory / "output.txt"
        with open(output, "w") as file:
            streams = {"stdout": file, "stderr": subprocess.STDOUT}
            environment = {**cluster.environment, **variables}
            started.append(subprocess.Popen(command, cwd=root, env=environment, **streams))
        if background:
            return started[-1]
        code = started[-1].wait()
        assert code == 0 or not check, f"{' '.join(command)}\n{output.read_text()}"
        return subprocess.CompletedProcess(command, code, output.read_text())

    yield run
    for process in started:
        process.kill()
        process.wait()
