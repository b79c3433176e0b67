"""Runs of a study as jobs of a cluster, through submitit's local stand-in for one."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from map_core.errors import UserError
from map_core.study.launching import ClusterJobs, Job, JobCommand, Processes

SAY = [sys.executable, "-c", "print('said', flush=True)"]
FAIL = [sys.executable, "-c", "import sys; print('why'); sys.exit(3)"]
WAIT = [sys.executable, "-c", "import time; print('began', flush=True); time.sleep(600)"]


def exit_status(job: Job, seconds: float = 120) -> int:
    deadline = time.monotonic() + seconds
    while (status := job.status()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return status


def wait_for_text(log: Path, text: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Jobs receive SIGINT, by which submitit's local stand-in ends them, even where a shell's ``&`` had it ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(params=["processes", "cluster"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Processes | ClusterJobs:
    return Processes(1) if request.param == "processes" else ClusterJobs("local", tmp_path / "jobs")


def test_commands_end_with_their_status_and_what_they_printed(
    launcher: Processes | ClusterJobs, tmp_path: Path
) -> None:
    jobs = {line[2]: launcher.start(line, tmp_path / f"a/{len(line[2])}.log") for line in (SAY, FAIL)}
    assert [exit_status(job) for job in jobs.values()] == [0, 3]
    assert [(tmp_path / f"a/{len(line[2])}.log").read_text() for line in (SAY, FAIL)] == ["said\n", "why\n"]


def test_a_stopped_command_is_no_longer_there(launcher: Processes | ClusterJobs, tmp_path: Path) -> None:
    job = launcher.start(WAIT, tmp_path / "log")
    wait_for_text(tmp_path / "log", "began")
    job.stop()
    job.wait()
    assert exit_status(job) != 0


def test_a_job_whose_time_is_over_lets_its_run_save_and_asks_for_another(tmp_path: Path) -> None:
    command = JobCommand([sys.executable, "-c", "print('saved')"], tmp_path / "log")
    assert command() == 0
    next_command = command.checkpoint().function
    assert next_command() == 0
    assert (tmp_path / "log").read_text() == "saved\n" * 2


def test_a_job_is_asked_for_another_while_its_run_goes_on(tmp_path: Path) -> None:
    """A signal interrupts the wait for the run, as a cluster's does."""
    command = JobCommand(WAIT, tmp_path / "log")
    submissions = []
    previous = signal.signal(signal.SIGUSR2, lambda number, frame: submissions.append(command.checkpoint()))
    signaller = threading.Thread(
        target=lambda: (wait_for_text(tmp_path / "log", "began"), os.kill(os.getpid(), signal.SIGUSR2))
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        signaller.start()
        assert command() == -signal.SIGTERM
    finally:
        signaller.join()
        signal.signal(signal.SIGUSR2, previous)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert [submission.function.line for submission in submissions] == [WAIT]


def test_a_refusal_by_the_cluster_is_reported_in_one_sentence(tmp_path: Path) -> None:
    jobs = ClusterJobs("local", tmp_path / "jobs")
    jobs.executor = None  # as useless as one whose cluster does not answer
    with pytest.raises(UserError, match=r"the cluster refuses run \(.*\); see --cluster_settings"):
        jobs.start(SAY, tmp_path / "run.log")


def test_settings_that_no_cluster_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--cluster 'slrum'.*slurm"):
        ClusterJobs("slrum", tmp_path)
    settings = tmp_path / "settings.yaml"
    settings.write_text("partition_of_slurm: gpu\n")
    with pytest.raises(
        UserError, match=r"submitit refuses cluster local .*settings.yaml.*partition_of_slurm"
    ):
        ClusterJobs("local", tmp_path, settings)
    for values, message in (
        ("timeout_min: 4h", "timeout_min.*expected type.*4h"),
        ("nodes: 2", "LocalExecutor can use only one node"),
    ):
        settings.write_text(values)
        with pytest.raises(UserError, match=f"submitit refuses cluster local .*settings.yaml: .*{message}"):
            ClusterJobs("local", tmp_path, settings)
    settings.write_text("- gpu\n")
    with pytest.raises(UserError, match="must map submitit's parameters"):
        ClusterJobs("local", tmp_path, settings)


def test_a_log_that_the_disk_refuses_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "arm").write_text("no folder")
    message = r"^cannot write the log .*arm/run.log \(.+\); check that disk, then start the study again: it goes on$"
    with pytest.raises(UserError, match=message):
        Processes(1).start(SAY, tmp_path / "arm/run.log")


def test_nothing_is_written_through_a_link_in_a_study_s_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run.log").symlink_to(tmp_path / "precious")
    with pytest.raises(
        UserError, match=r"run.log is a symbolic link, through which no study writes; remove it"
    ):
        Processes(1).start(SAY, tmp_path / "run.log")
    assert (tmp_path / "precious").read_text() == "kept"
