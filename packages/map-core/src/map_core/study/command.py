"""The commands ``study`` and ``study-report``: arms compared on equal rate grids and equal data, at stated compute."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from map_core.commands.options import Option, config_class
from map_core.commands.recipes import find_recipe
from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.ranges import refuse_without_effect
from map_core.runs.files import require_file, require_folder
from map_core.study.consistency import planned_results
from map_core.study.cost import (
    Operations,
    describe_plan,
    resolve_compute,
    resolve_known_compute,
)
from map_core.study.definition import Study, read_study
from map_core.study.launching import Cluster, ClusterJobs, refuse_link
from map_core.study.location import StudyLocation
from map_core.study.preconditions import check_preconditions
from map_core.study.report import table, write_report
from map_core.study.results import read_results
from map_core.study.run_settings import read_run_settings
from map_core.study.runner import check_jobs, run_study
from map_core.tasks.domain import Domain

STUDY = Option(str, "A packaged study's name, or a YAML file.")
OUT = Option(str | None, "Directory of its runs; runs/<name of the study> when not given.", None)
RESULTS = Option(
    str | None, "File of its results, one line a run; results.jsonl in out when not given.", None
)
StudyConfig = config_class(
    "StudyConfig",
    "A study: every run an ordinary one, finished ones never repeated, interrupted ones resumed.",
    study=STUDY,
    out=OUT,
    results=RESULTS,
    jobs=Option(int, "Number of runs at once; on this machine, several get one thread each.", 1),
    cluster=Option(
        Cluster | None, "Submit the runs with submitit: to slurm, or to local to try it out.", None
    ),
    cluster_settings=Option(
        str | None, "YAML file of submitit's parameters, such as slurm_partition and timeout_min.", None
    ),
    run_settings=Option(
        str | None,
        "YAML file of this machine's settings for every training run, such as training.workers and "
        "training.compile; results must not depend on them.",
        None,
    ),
    budget_minutes=Option(float | None, "Start no run that would exceed this many minutes in all.", None),
    dry_run=Option(bool, "Print runs, samples, operations and hours, timed here, and start nothing.", False),
)
StudyReportConfig = config_class(
    "StudyReportConfig",
    "A study's results as a page, a plot and a file of numbers.",
    study=STUDY,
    out=OUT,
    results=RESULTS,
    report=Option(str | None, "Directory of report.md and report.png; out when not given.", None),
)


def open_study(domain: Domain, config: Any) -> tuple[Study, StudyLocation]:
    """The study that ``config`` names, and where it runs.

    Raises:
        UserError: the study's file is not valid.
    """
    with find_recipe(f"{domain.module}.studies", config.study, kind="study", option="--study") as path:
        definition = read_study(path, f"{domain.module}.studies")
    out = expand_user(config.out or f"runs/{definition.name}")
    results = expand_user(config.results) if config.results else out / "results.jsonl"
    if not config.results:
        refuse_link(results)
    return definition, StudyLocation(domain.module, out, results)


def study(domain: Domain, config: Any) -> None:
    """Run a study, then print its table and write its report.

    Raises:
        UserError: it cannot write to its folder or results; settings that have no effect or fit no study.
    """
    check_jobs(config.jobs)
    if config.out:
        require_folder(expand_user(config.out))
    if config.results:
        require_file(expand_user(config.results), option="--results")
    if config.dry_run:
        because = "--dry_run true, which starts no run"
        refuse_without_effect("", config, "cluster", "cluster_settings", "budget_minutes", because=because)
    if config.cluster is None:
        refuse_without_effect("", config, "cluster_settings", because="no --cluster")
    definition, location = open_study(domain, config)
    require_folder(location.out)
    if config.run_settings is not None:
        location = replace(location, run_settings=read_run_settings(expand_user(config.run_settings)))
    with tempfile.TemporaryDirectory() as scratch:
        results = read_results(location.results, definition.name)
        check_preconditions(definition, domain, Path(scratch) / "none", results)
        resolved_study = resolve_compute(definition, domain, Path(scratch) / "none", results)
        if config.dry_run:
            results = planned_results(resolved_study, results, location)
            print(describe_plan(resolved_study, domain, Path(scratch), results))
            if location.run_settings:
                print("timed without --run_settings")
            return
    launcher = None
    if config.cluster is not None:
        settings = None if config.cluster_settings is None else expand_user(config.cluster_settings)
        launcher = ClusterJobs(config.cluster, location.out / "jobs", settings)
    results = run_study(
        resolved_study,
        location,
        jobs=config.jobs,
        budget_minutes=config.budget_minutes,
        launcher=launcher,
        flops=Operations(domain),
        recipes=domain.recipes,
    )
    results = planned_results(resolved_study, results, location)
    page = write_report(resolved_study, results, location.out, command_of(domain, config))
    print(f"{table(resolved_study, results)}\n\nreport -> {page}, results -> {location.results}")


def study_report(domain: Domain, config: Any) -> None:
    """Write the report of a study's results so far."""
    if config.report:
        require_folder(expand_user(config.report), option="--report")
    elif config.out:
        require_folder(expand_user(config.out))
    definition, location = open_study(domain, config)
    if not config.report:
        require_folder(location.out)
    results = read_results(location.results, definition.name)
    if not results:
        raise UserError(
            f"{location.results} holds no results; start the study ({command_of(domain, config)}), or name a file that "
            "has some with --results"
        )
    resolved_study = resolve_known_compute(definition, results)
    results = planned_results(resolved_study, results, location)
    page = write_report(
        resolved_study, results, expand_user(config.report or location.out), command_of(domain, config)
    )
    print(f"{table(resolved_study, results)}\n\nreport -> {page}")


def command_of(domain: Domain, config: Any) -> str:
    """The command that runs the study, as a report prints it."""
    return f"{domain.program} study --study {config.study}"
