"""A run as a folder to share: weights, their description, and a card whose numbers all come from the run directory."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from map_core.errors import in_one_line
from map_core.runs.files import replacing, save_json, save_text
from map_core.tasks.domain import Domain
from map_core.tasks.trained_models import TRAINING_ONLY, ModelConfig, Models
from map_core.tasks.weights import MODEL_FILE, weights_file

CARD, TIMM_CONFIG = "README.md", "config.json"
UNKNOWN = "not recorded"
MEASURED = "test_"  # prefix of a summary's measures


@dataclass(frozen=True)
class Stage:
    """One training on the way to the weights.

    Attributes:
        command: Repeats it, apart from the paths of data and runs.
        summary: Its ``summary.json``.
        epochs: Epochs until a signal ended it early, if one did.
        unknown_start: Whether it started from weights of which no run is known.
    """

    command: str
    summary: Mapping[str, Any]
    epochs: float | None = None
    unknown_start: bool = False


@dataclass(frozen=True)
class UsageTerms:
    """Facts that are in no run directory.

    Attributes:
        data: What the weights were trained on, and the terms of its use.
        license: Licence of the weights, as the Hub names it.
        datasets: The data's names on the Hub.
    """

    data: str
    license: str = "unknown"
    datasets: Sequence[str] = ()


def write_model_card(
    domain: Domain, run: Path, out: Path, stages: Sequence[Stage], terms: UsageTerms
) -> Path:
    """Write a run's model as a folder to share, and return its card.

    Args:
        domain: Whose run it is.
        run: The directory of a pretraining, finetuning or probing run.
        out: Folder for ``model.safetensors``, ``model.json``, ``README.md`` and, where timm can make the model, the
            ``config.json`` that it reads.
        stages: Its trainings, the run's own last.
        terms: Facts that are not in the run.

    Raises:
        UserError: the run has no weights of an encoder or a classifier.
    """
    description = shared_description(domain, run)
    parameters = sum(value.numel() for value in domain.models.load(run).parameters())  # buffers do not count
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / MODEL_FILE) as partial:
        shutil.copyfile(weights_file(run), partial)
    save_json((out / MODEL_FILE).with_suffix(".json"), description)
    if domain.timm_config is not None:
        config = domain.models.read_model_config(out)
        save_json(out / TIMM_CONFIG, domain.timm_config(config, description))
    save_text(out / CARD, card_text(domain, description, stages, terms, parameters=parameters))
    return out / CARD


def shared_description(domain: Domain, run: Path) -> dict[str, Any]:
    """A run's description, under the registered name that equals its model, if there is one.

    Raises:
        UserError: it describes neither an encoder nor a classifier.
    """
    config, description = domain.models.encoder_or_classifier(run)
    model = registered(domain.models, config)
    return {**description, "name": model.name, "arguments": json.loads(json.dumps(model.arguments()))}


def registered(models: Models[Any], config: ModelConfig) -> ModelConfig:
    """The model under a registered name that it equals without changes; if there is none, under its present name."""
    arguments = {key: value for key, value in config.arguments().items() if key not in TRAINING_ONLY}
    settings = plain_settings(models, models.config(config.name, **arguments))
    for name in (config.name, *models.names):
        if plain_settings(models, models.config(name)) == settings:
            return models.config(name)
    return models.config(config.name, **arguments)


def plain_settings(models: Models[Any], config: ModelConfig) -> dict[str, Any]:
    """Every setting that a model's weights depend on, as plain JSON values."""
    resolved = {key: value for key, value in models.resolved(config).items() if key not in TRAINING_ONLY}
    return json.loads(json.dumps(resolved, default=str))


def card_text(
    domain: Domain,
    description: Mapping[str, Any],
    stages: Sequence[Stage],
    terms: UsageTerms,
    *,
    parameters: int,
) -> str:
    """The card: front matter for the Hub, then text for people."""
    classes = description.get("classes") or ()
    name, summary = description["name"], stages[-1].summary
    kind = f"a classifier of {len(classes)} classes" if classes else "an encoder that gives features"
    parts = [
        f"---\n{front_matter(domain, description, summary, terms)}\n---",
        f"# {name}\n\nThe model `{name}` of MAP, masked autoregressive pretraining of hybrid Mamba-Transformer "
        f"backbones: {kind} of {domain.sample}s, {parameters:,} parameters. {describe_changes(description)}",
        f"## Use\n\n```python\n{usage(domain)}\n```",
        f"## Data\n\n{terms.data}",
        "## Training\n\n" + "\n\n".join(training_section(stage) for stage in stages),
        f"## Measures\n\n{measures(summary)}",
    ]
    if classes:
        parts.append(f"## Classes\n\n{', '.join(map(in_one_line, classes))}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def describe_changes(description: Mapping[str, Any]) -> str:
    """A sentence on the differences from the registered model, if any."""
    arguments = description["arguments"]
    settings = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return f"It differs from the registered model in {settings}." if settings else ""


def front_matter(
    domain: Domain, description: Mapping[str, Any], summary: Mapping[str, Any], terms: UsageTerms
) -> str:
    """YAML that the Hub reads."""
    timm, classes = domain.timm_config is not None, description.get("classes")
    task = f"{domain.sample}-{'classification' if classes else 'feature-extraction'}"
    accuracy, results = summary.get("test_accuracy"), None
    if accuracy is not None and terms.datasets:
        results = [
            EvalResult(
                task_type=task,
                dataset_type=terms.datasets[0],
                dataset_name=terms.datasets[0],
                metric_type="accuracy",
                metric_value=accuracy,
                metric_name=f"accuracy in %, {summary.get('evaluated_on')}",
            )
        ]
    metadata = ModelCardData(
        license=terms.license,
        library_name="timm" if timm else "pytorch",
        pipeline_tag=task if timm else None,
        tags=[*(["timm"] if timm else []), task, "mamba", "masked-autoregressive-pretraining"],
        datasets=list(terms.datasets) or None,
        metrics=None if accuracy is None else ["accuracy"],
        model_name=description["name"],
        eval_results=results,
    )
    return str(metadata.to_yaml()).strip()


def usage(domain: Domain) -> str:
    """Lines of Python that load the model."""
    package = domain.module
    lines = [
        f"import {package}",
        "",
        f'model = {package}.from_pretrained("USER/NAME")  # a repository with this card, or this folder',
    ]
    if domain.timm_config is not None:
        lines[:1] = [f"import timm, {package}"]
        lines += ['model = timm.create_model("hf-hub:USER/NAME", pretrained=True)  # likewise']
    return "\n".join(lines)


def training_section(stage: Stage) -> str:
    """A training in the card: its command, and commit, hardware and time from its summary."""
    summary = stage.summary
    seconds = summary.get("seconds")
    rows = {
        "commit": in_one_line(summary.get("commit") or UNKNOWN),
        "hardware": in_one_line(
            f"{summary.get('device', UNKNOWN)}, processes: {summary.get('processes', UNKNOWN)}"
        ),
        "time": UNKNOWN if seconds is None else f"{seconds / 60:.1f} minutes",
        "versions": in_one_line(
            ", ".join(f"{key} {value}" for key, value in summary.get("versions", {}).items())
        )
        or UNKNOWN,
    }
    if stage.unknown_start:
        rows["started from"] = "weights that no run here is known to have trained"
    if summary.get("interrupted"):
        length = UNKNOWN if stage.epochs is None else f"{stage.epochs:.1f} epochs"
        rows["ended early"] = f"by {in_one_line(str(summary.get('stopped_by') or UNKNOWN))}, after {length}"
    items = "\n".join(f"- {key}: {value}" for key, value in rows.items())
    return f"{summary.get('task', 'training').capitalize()}:\n\n```\n{stage.command}\n```\n\n{items}"


def measures(summary: Mapping[str, Any]) -> str:
    """A table of what the run measured."""
    rows = {key: value for key, value in summary.items() if key.startswith(MEASURED) and value is not None}
    rows = rows or {key: summary[key] for key in ("loss",) if summary.get(key) is not None}
    if not rows:
        return "The run measured nothing."
    where = in_one_line(summary.get("evaluated_on") or "the training data")
    table = "\n".join(f"| {in_one_line(key)} | {value:.4g} |" for key, value in rows.items())
    return f"On {where}, at the end of training:\n\n| measure | value |\n|---|---|\n{table}"
