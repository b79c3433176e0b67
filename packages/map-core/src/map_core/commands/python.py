"""Commands as functions: ``map_vision.pretrain("photos", out="runs/p")`` runs the command of that name.

Its settings are parsed alike. Nothing here imports torch: a package offers these functions without waiting for it.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from map_core.commands.arguments import CONFIG, Arguments
from map_core.commands.command import Command
from map_core.commands.forms import settings_of_all_forms
from map_core.commands.parser import resolve
from map_core.commands.program import find_command, validate
from map_core.commands.settings import Setting, flatten
from map_core.commands.values import takes_several
from map_core.errors import UserError, near_matches
from map_core.paths import expand_user
from map_core.reading import read_small
from map_core.tasks.features import score_file

PICTURES = ("reconstructions.png", "curves.png")  # of a run, the most informative first
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Result:
    """The result of a command; a notebook shows its picture.

    Attributes:
        out: The run directory, or the file that was written.
        metrics: The summary.json of a run, or the score of features where there is one.
        picture: The reconstructions of a run, or else its curves; None where there are none.
    """

    out: Path
    metrics: Mapping[str, Any] = field(repr=False, default_factory=dict)
    picture: Path | None = None

    def __getitem__(self, name: str) -> Path:
        """A file of the run, such as ``model.safetensors``.

        Raises:
            UserError: there is no file of that name.
        """
        files = sorted(path.name for path in self.out.iterdir()) if self.out.is_dir() else []
        if name not in files:
            raise UserError(f"{self.out} has no {name}; {near_matches(name, files)}")
        return self.out / name

    def _repr_png_(self) -> bytes | None:
        return None if self.picture is None else self.picture.read_bytes()


@dataclass(frozen=True)
class Functions:
    """A program's commands as functions.

    Besides a function's arguments, every setting of its command can be passed: in ``settings``, or as a keyword
    ``**{"training.lr": 1e-4}``, by its name on the command line. Settings override recipes, and in Python they are
    values: None is null, a list is several values.

    Attributes:
        commands: The program's commands.
        recipes: The package that holds its recipes.
        files: The option of ``predict`` and ``features`` for the files that they read, such as "images".
    """

    commands: Sequence[Command] = field(repr=False)
    recipes: str
    files: str

    def pretrain(
        self,
        data: AnyPath | None = None,
        *,
        model: str | None = None,
        out: AnyPath = "runs/pretrain",
        config: AnyPath | Sequence[AnyPath] | None = None,
        init: AnyPath | None = None,
        resume: AnyPath | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Result:
        """Pretrain an encoder without labels, as the command ``pretrain`` does.

        Args:
            data: Folder with the data (``data.root``). None leaves it and all arguments below to recipes and defaults.
            model: A registered model's name (``model.name``).
            out: Run directory.
            config: Recipes, by name or as files.
            init: A run or weights file to start from.
            resume: ``auto`` continues the newest checkpoint in ``out``; a path continues that one.
            epochs: Passes over the data (``training.epochs``).
            batch_size: Samples of an optimizer step, over all processes (``training.batch_size``).
            lr: Learning rate (``training.lr``).
            device: ``cpu``, ``cuda`` or the like (``training.device``).
            settings: All other settings, by dotted name.
            **more: Likewise.

        Raises:
            UserError: what the command would refuse.
        """
        arguments = self._training_settings(data, model, init, resume, epochs, batch_size, lr, device)
        return self._run("pretrain", config, out, arguments, settings, more)

    def finetune(
        self,
        data: AnyPath | None = None,
        *,
        init: AnyPath | None = None,
        model: str | None = None,
        out: AnyPath = "runs/finetune",
        config: AnyPath | Sequence[AnyPath] | None = None,
        resume: AnyPath | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Result:
        """Train a classifier, from a pretraining run or from scratch, as the command ``finetune`` does.

        Args:
            data: Folder with labelled data (``data.root``).
            init: A pretraining run to start from; its model is taken over.
            model, out, config, resume, epochs, batch_size, lr, device, settings, **more: As in :meth:`pretrain`.

        Raises:
            UserError: what the command would refuse.
        """
        arguments = self._training_settings(data, model, init, resume, epochs, batch_size, lr, device)
        return self._run("finetune", config, out, arguments, settings, more)

    def predict(
        self,
        run: AnyPath,
        files: AnyPath | Sequence[AnyPath],
        *,
        out: AnyPath = "predictions.csv",
        top: int | None = None,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Result:
        """Write the most probable classes of files as CSV, as the command ``predict`` does.

        Args:
            run: A finetuning or probing run, or its weights file.
            files: Files and folders.
            out: CSV to write.
            top: Classes per row.
            device: ``cpu``, ``cuda`` or the like (``evaluation.device``).
            settings: All other settings, by dotted name.
            **more: Likewise.

        Raises:
            UserError: what the command would refuse.
        """
        arguments = {"init": run, self.files: files, "top": top, "evaluation.device": device}
        return self._run("predict", None, out, arguments, settings, more)

    def features(
        self,
        run: AnyPath,
        files: AnyPath | Sequence[AnyPath] | None = None,
        *,
        out: AnyPath = "features.npz",
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Result:
        """Write features of files, or of the run's own data with a kNN score, as the command ``features`` does.

        Args:
            run: Any run, or its weights file.
            files: Files and folders; the run's own data when None.
            out: NPZ to write.
            device: ``cpu``, ``cuda`` or the like (``evaluation.device``).
            settings: All other settings, by dotted name.
            **more: Likewise.

        Raises:
            UserError: what the command would refuse.
        """
        arguments = {"init": run, self.files: files, "evaluation.device": device}
        return self._run("features", None, out, arguments, settings, more)

    def _training_settings(
        self,
        data: AnyPath | None,
        model: str | None,
        init: AnyPath | None,
        resume: AnyPath | None,
        epochs: int | None,
        batch_size: int | None,
        lr: float | None,
        device: str | None,
    ) -> dict[str, Any]:
        """The common arguments of the commands that train, by dotted name."""
        return {
            "data.root": data,
            "model.name": model,
            "init": init,
            "resume": resume,
            "training.epochs": epochs,
            "training.batch_size": batch_size,
            "training.lr": lr,
            "training.device": device,
        }

    def _run(
        self,
        name: str,
        config: AnyPath | Sequence[AnyPath] | None,
        out: AnyPath,
        arguments: Mapping[str, Any],
        settings: Mapping[str, Any] | None,
        more: Mapping[str, Any],
    ) -> Result:
        """Run a command and return its result.

        Args:
            name: Name of the command.
            config: Recipes; None for none.
            out: Where to write.
            arguments: The settings that the function has arguments for; None leaves one as it is.
            settings, more: All others.

        Raises:
            UserError: what the command would refuse, a setting that it does not have, or one that is given twice.
        """
        command = find_command(name, self.commands)
        from_arguments = {key: value for key, value in arguments.items() if value is not None} | {"out": out}
        command_settings = settings_of_all_forms(command.config_class)
        pairs = [*(settings or {}).items(), *more.items()]
        others = flatten_sections(pairs, command_settings, f"{name}()")
        if duplicates := from_arguments.keys() & others.keys():
            raise UserError(f"{name}() was given {min(duplicates)} twice; give it once")
        recipes = [config] if isinstance(config, str | os.PathLike) else config or ()
        command_arguments = Arguments(
            recipes=[os.fspath(recipe) for recipe in recipes],
            settings=[
                (key, [to_argument(value, command_settings[key].kind)])
                for key, value in {**from_arguments, **others}.items()
            ],
        )
        command_config = resolve(f"{name}()", command, self.commands, self.recipes, command_arguments)
        validate(command_config)
        command.execute(command_config)
        path = expand_user(out)
        metrics_file = path / "summary.json"
        if name == "features" and getattr(command_config, self.files) is None:
            metrics_file = score_file(path)
        return read_result(path, metrics_file, name)


def flatten_sections(
    settings: Iterable[tuple[str, Any]], command_settings: Mapping[str, Setting], place: str
) -> dict[str, Any]:
    """Settings by dotted name; sections passed as mappings are flattened.

    Args:
        settings: Dotted names and values.
        command_settings: All settings of the command.
        place: The name of the call in messages.

    Raises:
        UserError: a setting that the command does not have, or one that is given twice.
    """
    flat: dict[str, Any] = {}
    for name, value in settings:
        is_tree = (
            name in command_settings and command_settings[name].is_section and isinstance(value, Mapping)
        )
        values = flatten(dict(value), f"{name}.") if is_tree else {name: value}
        if duplicates := flat.keys() & values.keys():
            raise UserError(f"{place} was given {min(duplicates)} twice; give it once")
        flat |= values
    for name in flat:
        if name not in command_settings:
            is_recipe = f"--{name}" == CONFIG
            hint = "recipes are given as config" if is_recipe else near_matches(name, command_settings)
            raise UserError(f"{place} has no setting {name}; {hint}")
        if command_settings[name].is_section:
            raise UserError(f"{name} of {place} must be a mapping of settings; got {flat[name]!r}")
    return flat


def to_argument(value: Any, kind: Any) -> Any:
    """The argument for a value of a setting; a text in brackets is not a list where the setting takes texts too."""
    argument = to_python_value(value)
    in_brackets = isinstance(argument, str) and argument.startswith("[")
    return [argument] if in_brackets and takes_several(kind) and str in get_args(kind) else argument


def to_python_value(value: Any) -> Any:
    """Convert paths to strings and NumPy's numbers to Python's, also in lists."""
    if isinstance(value, list | tuple):
        return [to_python_value(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def read_result(out: Path, metrics_file: Path, task: str) -> Result:
    """The result of a command that wrote a run directory or a file, with its metrics, if there are any.

    Args:
        out: The directory or file.
        metrics_file: File of the metrics; one that is not of ``task`` is somebody else's.
        task: The name of the command.
    """
    metrics: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # there is none, or it is not JSON
        metrics = json.loads(read_small(metrics_file))
    if not isinstance(metrics, dict) or metrics.get("task") != task:
        metrics = {}
    pictures = [out / name for name in PICTURES if (out / name).is_file()]
    return Result(out, metrics, pictures[0] if pictures else None)
