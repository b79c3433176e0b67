"""Starting the runs of a study: processes on this machine, or jobs on a cluster through submitit."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, get_args, runtime_checkable

from map_core.commands.plain_yaml import read_yaml
from map_core.errors import UserError, near_matches
from map_core.runs.files import explaining_disk_errors
from map_core.study.results import GO_ON

# names of submitit; its "local" starts processes here, to try settings out
Cluster = Literal["slurm", "local"]
CLUSTERS = get_args(Cluster)


@runtime_checkable
class Job(Protocol):
    """A command that was started."""

    def status(self) -> int | None:
        """Return its exit status, or None while it runs."""

    def stop(self) -> None:
        """Ask it to save and stop, as a scheduler would."""

    def wait(self) -> None:
        """Wait until it has ended."""


@runtime_checkable
class Launcher(Protocol):
    """Starts commands."""

    def start(self, line: Sequence[str], log: Path) -> Job:
        """Start a command; its output is appended to ``log``."""


@dataclass(frozen=True)
class Process:
    """A process on this machine."""

    process: "subprocess.Popen[bytes]"

    def status(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()

    def wait(self) -> None:
        self.process.wait()


@dataclass(frozen=True)
class Processes:
    """Starts processes on this machine.

    Attributes:
        threads: Threads of each process; None means as many as there are cores.
    """

    threads: int | None = None

    def start(self, line: Sequence[str], log: Path) -> Process:
        environment = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return Process(start_process(line, log, environment))


def refuse_link(path: Path) -> None:
    """Keep a study from writing through a symbolic link in its folder.

    Raises:
        UserError: ``path`` is one.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link, through which no study writes; remove it")


def start_process(
    line: Sequence[str], log: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a process whose output is appended to ``log``.

    Raises:
        UserError: ``log`` is a link, which a folder from elsewhere may hold, or the disk refuses it.
    """
    with open_log(log) as file:
        return subprocess.Popen(
            list(line),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )


def open_log(log: Path) -> BinaryIO:
    """Open a log to append to it.

    Raises:
        UserError: it is a link, or the disk refuses it.
    """
    refuse_link(log)
    with explaining_disk_errors(f"write the log {log}", then=GO_ON):
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab")


class JobCommand:
    """The work of a cluster job; submitit calls it there, and ``checkpoint`` before the job's time is up."""

    def __init__(self, line: Sequence[str], log: Path) -> None:
        self.line, self.log = list(line), log
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        self.process = start_process(self.line, self.log, {})
        for number in (signal.SIGTERM, signal.SIGINT):  # from Slurm, and from submitit's local stand-in
            signal.signal(number, lambda number, frame: self._terminate())
        return self.process.wait()

    def checkpoint(self) -> Any:
        """Let the run save, and ask for another job that continues it."""
        from submitit.helpers import DelayedSubmission

        self._terminate()
        if self.process is not None:
            # not wait(): a signal interrupted the one in __call__, which holds the lock that another would wait for
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(JobCommand(self.line, self.log))

    def _terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()


@dataclass(frozen=True)
class ClusterJob:
    """A job that submitit manages."""

    job: Any
    log: Path

    def status(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception as error:  # submitit's errors, for jobs that the cluster ended
            with explaining_disk_errors(f"write the log {self.log}", then=GO_ON), open_log(self.log) as file:
                file.write(f"job {self.job.job_id}: {error}\n".encode())
            return 1

    def stop(self) -> None:
        self.job.cancel(check=False)

    def wait(self) -> None:
        self.job.wait()


class ClusterJobs:
    """Submits jobs to a cluster.

    Args:
        cluster: One of ``CLUSTERS``.
        folder: Folder for submitit's files.
        settings: YAML file of submitit's parameters, such as ``slurm_partition``, ``timeout_min``, ``gpus_per_node``.

    Raises:
        UserError: submitit is not installed, does not know the cluster, or refuses a setting.
    """

    def __init__(self, cluster: str, folder: Path, settings: Path | None = None) -> None:
        if cluster not in CLUSTERS:
            raise UserError(f"--cluster {cluster!r}: {near_matches(cluster, CLUSTERS)}")
        executor_class = _import_executor()
        parameters = {} if settings is None else read_yaml(settings)
        if not isinstance(parameters, dict):
            raise UserError(f"--cluster_settings {settings} must map submitit's parameters to values")
        try:
            self.executor = executor_class(folder=folder, cluster=cluster)
            self.executor.update_parameters(name="study", **parameters)
        # submitit's errors for clusters, and for the names, types and values of parameters
        except (NameError, TypeError, RuntimeError, AssertionError, ValueError) as error:
            source = f" with --cluster_settings {settings}" if settings else ""
            raise UserError(f"submitit refuses cluster {cluster}{source}: {error}") from error

    def start(self, line: Sequence[str], log: Path) -> ClusterJob:
        try:
            return ClusterJob(self.executor.submit(JobCommand(line, log)), log)
        except Exception as error:  # submitit's errors, for what the cluster refuses
            raise UserError(f"the cluster refuses {log.stem} ({error}); see --cluster_settings") from error


def _import_executor() -> Callable[..., Any]:
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UserError("--cluster needs submitit: pip install submitit") from error
    return AutoExecutor
