"""The commands ``study`` and ``study-report``: arms compared at equal grids of rates, equal data and stated compute."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from map_core.commands.options import Option, config_class
from map_core.commands.recipes import find_recipe
from map_core.errors import UserError
from map_core.paths import expanded
from map_core.runs.files import require_file, require_folder
from map_core.study.cost import Operations, describe_plan, resolve_compute, resolve_known_compute
from map_core.study.definition import Study, read_study
from map_core.study.launching import ClusterJobs, refuse_link
from map_core.study.place import Place
from map_core.study.report import table, write_report
from map_core.study.results import read_results
from map_core.study.run_settings import read_run_settings
from map_core.study.runner import results_asked_for, run_study
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
    jobs=Option(int, "Runs at once; on this machine one thread each where there are several.", 1),
    cluster=Option(str | None, "Submit the runs with submitit: to slurm, or to local to try it out.", None),
    cluster_settings=Option(
        str | None, "YAML file of submitit's parameters, such as slurm_partition and timeout_min.", None
    ),
    run_settings=Option(
        str | None,
        "YAML file of settings of this machine for every training run, such as training.workers and "
        "training.compile; what is computed must not depend on them.",
        None,
    ),
    budget_minutes=Option(float | None, "Start nothing that would not end within it.", None),
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


def open_study(domain: Domain, config: Any) -> tuple[Study, Place]:
    """The study that ``config`` names, and where it runs.

    Raises:
        UserError: it cannot write there, or what its file says makes no study.
    """
    if config.out:
        require_folder(expanded(config.out))
    if config.results:
        require_file(expanded(config.results), option="--results")
    with find_recipe(f"{domain.module}.studies", config.study, kind="study", option="--study") as path:
        found = read_study(path, f"{domain.module}.studies")
    out = expanded(config.out or f"runs/{found.name}")
    require_folder(out)
    results = expanded(config.results) if config.results else out / "results.jsonl"
    if not config.results:
        refuse_link(results)
    return found, Place(domain.module, out, results)


def study(domain: Domain, config: Any) -> None:
    """Run a study, then print its table and write its report."""
    asked, place = open_study(domain, config)
    if config.run_settings is not None:
        place = replace(place, run_settings=read_run_settings(expanded(config.run_settings)))
    with tempfile.TemporaryDirectory() as scratch:
        known = read_results(place.results, asked.name)
        found = resolve_compute(asked, domain, Path(scratch) / "none", known)
        if config.dry_run:
            print(describe_plan(found, domain, Path(scratch), known))
            if place.run_settings:
                print("timed without --run_settings")
            return
    launcher = None
    if config.cluster is not None:
        settings = None if config.cluster_settings is None else expanded(config.cluster_settings)
        launcher = ClusterJobs(config.cluster, place.out / "jobs", settings)
    results = run_study(
        found,
        place,
        jobs=config.jobs,
        budget_minutes=config.budget_minutes,
        launcher=launcher,
        flops=Operations(domain),
    )
    results = results_asked_for(found, results, place)
    page = write_report(found, results, place.out, command_of(domain, config))
    print(f"{table(found, results)}\n\nreport -> {page}, results -> {place.results}")


def study_report(domain: Domain, config: Any) -> None:
    """Write the report of what a study has measured so far."""
    if config.report:
        require_folder(expanded(config.report), option="--report")
    asked, place = open_study(domain, config)
    results = read_results(place.results, asked.name)
    if not results:
        raise UserError(
            f"{place.results} holds no results; start the study ({command_of(domain, config)}), or name a file that "
            "has some with --results"
        )
    found = resolve_known_compute(asked, results)
    results = results_asked_for(found, results, place)
    page = write_report(found, results, expanded(config.report or place.out), command_of(domain, config))
    print(f"{table(found, results)}\n\nreport -> {page}")


def command_of(domain: Domain, config: Any) -> str:
    """The command that runs the study, as a report prints it."""
    return f"{domain.program} study --study {config.study}"
