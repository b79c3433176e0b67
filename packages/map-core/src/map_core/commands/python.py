"""Commands as functions: ``map_vision.pretrain("photos", out="runs/p")`` is the command of that name, parsed alike.

Nothing here imports torch: a package offers these functions without waiting for it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from map_core.commands.arguments import CONFIG, Arguments
from map_core.commands.command import Command
from map_core.commands.forms import settings_of_all_forms
from map_core.commands.parser import resolve
from map_core.commands.program import find_command, validate
from map_core.commands.settings import Setting, flatten
from map_core.errors import UserError, near_matches
from map_core.paths import expanded
from map_core.reading import read_small
from map_core.tasks.features import score_file

PICTURES = ("reconstructions.png", "curves.png")  # of a run, the one that says most first
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Result:
    """What a command left; a notebook shows its picture.

    Attributes:
        out: The run directory, or the file that was written.
        metrics: Of a run what its summary.json says, of features their score where there is one.
        picture: Reconstructions, or else curves, of a run; None where there are none.
    """

    out: Path
    metrics: Mapping[str, Any] = field(repr=False, default_factory=dict)
    picture: Path | None = None

    def __getitem__(self, name: str) -> Path:
        """A file of the run, such as ``model.safetensors``.

        Raises:
            UserError: it left none of that name.
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

    Every setting of a command can be given, whatever the function's own arguments: in ``settings``, or as keyword
    ``**{"training.lr": 1e-4}``, by the name that the command line has for it. Settings override recipes, and those
    in Python are values: None is null, a list is several.

    Attributes:
        commands: Of the program.
        recipes: The package that holds its recipes.
        files: What ``predict`` and ``features`` call the files that they read, such as "images".
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
        config: AnyPath | Sequence[AnyPath] = (),
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
            data: Folder with the data (``data.root``); as recipe or defaults say when None, as all that follows.
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
        named = self._training(data, model, init, resume, epochs, batch_size, lr, device)
        return self._run("pretrain", config, out, named, {**(settings or {}), **more})

    def finetune(
        self,
        data: AnyPath | None = None,
        *,
        init: AnyPath | None = None,
        model: str | None = None,
        out: AnyPath = "runs/finetune",
        config: AnyPath | Sequence[AnyPath] = (),
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
            model, out, config, resume, epochs, batch_size, lr, device, settings, **more: As of :meth:`pretrain`.

        Raises:
            UserError: what the command would refuse.
        """
        named = self._training(data, model, init, resume, epochs, batch_size, lr, device)
        return self._run("finetune", config, out, named, {**(settings or {}), **more})

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
            top: Classes a row.
            device: ``cpu``, ``cuda`` or the like (``evaluation.device``).
            settings: All other settings, by dotted name.
            **more: Likewise.

        Raises:
            UserError: what the command would refuse.
        """
        named = {"init": run, self.files: files, "top": top, "evaluation.device": device}
        return self._run("predict", (), out, named, {**(settings or {}), **more})

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
        named = {"init": run, self.files: files, "evaluation.device": device}
        return self._run("features", (), out, named, {**(settings or {}), **more})

    def _training(
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
        """What the commands that train call their common arguments."""
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
        config: AnyPath | Sequence[AnyPath],
        out: AnyPath,
        named: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> Result:
        """Run a command and say what it left.

        Args:
            name: Of the command.
            config: Recipes.
            out: Where to write.
            named: Settings of the function's own arguments; None leaves one alone.
            settings: All others.

        Raises:
            UserError: what the command would refuse, or a setting that it does not have.
        """
        command = find_command(name, self.commands)
        given = {key: value for key, value in named.items() if value is not None} | {"out": out}
        others = spelled_out(settings, settings_of_all_forms(command.config_class), f"{name}()")
        if twice := given.keys() & others.keys():
            raise UserError(f"{name}() was given {min(twice)} twice; give it once")
        recipes = [config] if isinstance(config, str | os.PathLike) else config
        asked = Arguments(
            recipes=[os.fspath(recipe) for recipe in recipes],
            settings=[(key, [in_plain_values(value)]) for key, value in {**given, **others}.items()],
        )
        made = resolve(f"{name}()", command, self.commands, self.recipes, asked)
        validate(made)
        command.execute(made)
        left = expanded(out)
        measured = left / "summary.json"
        if name == "features" and getattr(made, self.files) is None:
            measured = score_file(left)
        return result_in(left, measured)


def spelled_out(settings: Mapping[str, Any], known: Mapping[str, Setting], place: str) -> dict[str, Any]:
    """Settings by dotted name; sections that were given as mappings are taken apart.

    Args:
        settings: By dotted name.
        known: All that there are.
        place: What messages call the call.

    Raises:
        UserError: one that there is not.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        takes_apart = name in known and known[name].is_section and isinstance(value, Mapping)
        flat |= flatten(dict(value), f"{name}.") if takes_apart else {name: value}
    for name in flat:
        if name not in known:
            hint = "recipes are given as config" if f"--{name}" == CONFIG else near_matches(name, known)
            raise UserError(f"{place} has no setting {name}; {hint}")
        if known[name].is_section:
            raise UserError(f"{name} of {place} must be a mapping of settings; got {flat[name]!r}")
    return flat


def in_plain_values(value: Any) -> Any:
    """Paths as texts, numbers of NumPy as Python's; also those in lists."""
    if isinstance(value, list | tuple):
        return [in_plain_values(entry) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def result_in(out: Path, measured: Path) -> Result:
    """What a command left in a run directory, or as a file, and what it measured, if it did."""
    metrics = json.loads(read_small(measured)) if measured.is_file() else {}
    pictures = [out / name for name in PICTURES if (out / name).is_file()]
    return Result(out, metrics, pictures[0] if pictures else None)
