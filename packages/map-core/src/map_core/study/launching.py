"""Where the runs of a study are started: processes of this machine, or jobs of a cluster by submitit."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from map_core.commands.plain_yaml import read_yaml
from map_core.errors import UserError, near_matches

CLUSTERS = ("slurm", "local")  # of submitit; its "local" starts processes here, to try settings out


@runtime_checkable
class Job(Protocol):
    """A command that was started."""

    def status(self) -> int | None:
        """Its exit status; None while it goes on."""

    def stop(self) -> None:
        """Ask it to save and to end, as a scheduler would."""

    def wait(self) -> None:
        """Wait for its end."""


@runtime_checkable
class Launcher(Protocol):
    """Starts commands."""

    def start(self, line: Sequence[str], log: Path) -> Job:
        """Start one; what it prints is added to ``log``."""


@dataclass(frozen=True)
class Process:
    """A process of this machine."""

    process: "subprocess.Popen[bytes]"

    def status(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()

    def wait(self) -> None:
        self.process.wait()


@dataclass(frozen=True)
class Processes:
    """Starts processes of this machine.

    Attributes:
        threads: Of each; as many as there are cores when None.
    """

    threads: int | None = None

    def start(self, line: Sequence[str], log: Path) -> Process:
        more = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return Process(started(line, log, more))


def refuse_link(path: Path) -> None:
    """Keep a study from writing through a symbolic link in its folder.

    Raises:
        UserError: there is one.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link, through which no study writes; remove it")


def started(line: Sequence[str], log: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """A process that adds what it prints to ``log``.

    Raises:
        UserError: that is a link, as a folder from elsewhere may hold.
    """
    refuse_link(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            list(line),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )


class Command:
    """What a job of a cluster does; submitit calls it there, and ``checkpoint`` before the job's time is over."""

    def __init__(self, line: Sequence[str], log: Path) -> None:
        self.line, self.log = list(line), log
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        self.process = started(self.line, self.log, {})
        for number in (signal.SIGTERM, signal.SIGINT):  # of Slurm, and of submitit's local stand-in
            signal.signal(number, lambda number, frame: self._terminate())
        return self.process.wait()

    def checkpoint(self) -> Any:
        """Let the run save, and ask for another job that goes on with it."""
        from submitit.helpers import DelayedSubmission

        self._terminate()
        if self.process is not None:
            # not wait(): a signal interrupted the one in __call__, which holds the lock that another would wait for
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Command(self.line, self.log))

    def _terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()


@dataclass(frozen=True)
class ClusterJob:
    """A job that submitit looks after."""

    job: Any
    log: Path

    def status(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception as error:  # submitit's own, of jobs that the cluster ended
            refuse_link(self.log)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a") as file:
                file.write(f"job {self.job.job_id}: {error}\n")
            return 1

    def stop(self) -> None:
        self.job.cancel(check=False)

    def wait(self) -> None:
        self.job.wait()


class ClusterJobs:
    """Submits jobs.

    Args:
        cluster: One of ``CLUSTERS``.
        folder: For what submitit writes.
        settings: YAML file of submitit's parameters, such as ``slurm_partition``, ``timeout_min``, ``gpus_per_node``.

    Raises:
        UserError: submitit is not installed, does not know such a cluster, or refuses a setting.
    """

    def __init__(self, cluster: str, folder: Path, settings: Path | None = None) -> None:
        if cluster not in CLUSTERS:
            raise UserError(f"--cluster {cluster!r}: {near_matches(cluster, CLUSTERS)}")
        submit = _submitit()
        parameters = {} if settings is None else read_yaml(settings)
        if not isinstance(parameters, dict):
            raise UserError(f"--cluster_settings {settings} must map submitit's parameters to values")
        try:
            self.executor = submit(folder=folder, cluster=cluster)
            self.executor.update_parameters(name="study", **parameters)
        except (
            NameError,
            TypeError,
            RuntimeError,
        ) as error:  # what submitit raises for parameters and clusters
            given = f" with --cluster_settings {settings}" if settings else ""
            raise UserError(f"submitit refuses cluster {cluster}{given}: {error}") from error

    def start(self, line: Sequence[str], log: Path) -> ClusterJob:
        try:
            return ClusterJob(self.executor.submit(Command(line, log)), log)
        except Exception as error:  # submitit's own, of what the cluster refuses
            raise UserError(f"the cluster refuses {log.stem} ({error}); see --cluster_settings") from error


def _submitit() -> Callable[..., Any]:
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UserError("--cluster needs submitit: pip install submitit") from error
    return AutoExecutor
