"""How a domain builds its models, and rebuilds trained ones from their descriptions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from map_core.errors import UserError, in_one_line, near_matches, reason
from map_core.tasks.families import Converted, Family
from map_core.tasks.initial_weights import FittingOptions, LoadReport
from map_core.tasks.setting_values import format_options
from map_core.tasks.weights import description_file, read_description, read_settings, weights_file


@dataclass
class ModelConfig:
    """The ``model`` section of a recipe: a registered name, and changes to it.

    A domain's section adds the arguments of its models, each None where the registered value applies.

    Args:
        name: Registered model.
    """

    name: str

    def arguments(self) -> dict[str, Any]:
        """The model's keyword arguments that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None and key != "name"}


Config = TypeVar("Config", bound=ModelConfig)
Changes = Mapping[str, Any]  # of a model's settings
NO_CHANGES: Changes = {}
TRAINING_ONLY = ("drop_rate", "drop_path_rate")  # settings that change nothing in a trained model


@runtime_checkable
class LoadInit(Protocol):
    """Starts a model from a run or weights file, as :func:`~map_core.tasks.initial_weights.load_init` does."""

    def __call__(
        self,
        model: nn.Module,
        path: str | Path,
        *,
        keep_head: bool = True,
        fitting_options: FittingOptions | None = None,
    ) -> LoadReport: ...


@dataclass(frozen=True)
class Models(Generic[Config]):
    """A domain's models.

    Attributes:
        config: The ``model`` section.
        names: Registered models.
        create_classifier: Builds a classifier from a configuration and a number of classes.
        create_backbone: Builds the form that is pretrained and probed, without head, from a configuration.
        probed: Makes the configuration of the classifier that a linear probe amounts to.
        create_probed: Builds a classifier with a linear head from that configuration and a number of classes.
        load_init: Loads the weights of a run or weights file into a model.
        inherited_settings: Settings that a command that starts from weights (``--init``) takes from their run,
            whatever a recipe says, because the weights mean nothing without them.
        invisible_settings: Settings without which weights mean nothing, but which their shapes do not reveal.
        classifier_settings: Those among both that only classifiers use; pretrained encoders go with any value of them.
        revealed_values: Values of these that the names of the weights reveal all the same.
        inputs: Settings of the inputs that the first layer is built for, such as channels.
        resolved: Every setting of a configuration's model, with the registered value where it sets none.
        families: Other projects' checkpoints, which ``load_init`` reads and ``convert`` writes as ours; a file belongs
            to the first family that has all of its keys.
        on_load: Called with a loaded model, its configuration and the description of its weights; sets the attributes
            of the model that its users need.
        loaders: Load runs and weights files of further kinds, neither classifiers nor encoders, by the ``holds`` of
            their description.
        elsewhere: Who has the models of other names, in messages.
    """

    config: type[Config]
    names: tuple[str, ...]
    create_classifier: Callable[[Config, int], nn.Module]
    create_backbone: Callable[[Config], nn.Module]
    probed: Callable[[Config], Config]
    create_probed: Callable[[Config, int], nn.Module]
    load_init: LoadInit
    inherited_settings: tuple[str, ...] = ()
    invisible_settings: tuple[str, ...] = ()
    classifier_settings: tuple[str, ...] = ()
    revealed_values: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    resolved: Callable[[Config], Mapping[str, Any]] = ModelConfig.arguments
    families: tuple[Family, ...] = ()
    on_load: Callable[[nn.Module, Config, Mapping[str, Any]], None] = lambda model, config, description: None
    loaders: Mapping[str, Callable[[str | Path], nn.Module]] = field(default_factory=dict)
    elsewhere: str = "the program that wrote it"

    def describe(self, config: Config, **more: Any) -> dict[str, Any]:
        """The JSON description with which a weights file can be read without its recipe."""
        return {"name": config.name, "arguments": config.arguments(), **more}

    def read_model_config(self, path: str | Path, changes: Changes = NO_CHANGES) -> Config | None:
        """The model that wrote a run or weights file; None when the file has no description beside it.

        Args:
            path: A run or weights file.
            changes: Settings that differ.

        Raises:
            UserError: a description of a model of another domain, or of arguments that this version does not know.
        """
        description = read_description(path)
        if "name" not in description:
            return None
        if description["name"] not in self.names:
            raise UserError(
                f"{path} holds {in_one_line(description['name'])}, which is no model of this program: use "
                f"{self.elsewhere}, or a newer version"
            )
        values = {"name": description["name"], **description.get("arguments", {}), **changes}
        return read_settings(self.config, values, description_file(path))

    def trained_with(self, names: Sequence[str], description: Mapping[str, Any]) -> list[str]:
        """Those of ``names`` that described weights were trained with: an encoder, with none of a classifier's."""
        is_encoder = description.get("holds") == "encoder"
        return [name for name in names if not (is_encoder and name in self.classifier_settings)]

    def refuse_other_settings(
        self,
        config: Config,
        path: str | Path | None,
        *,
        may_differ: Sequence[str] | None = None,
        is_init: bool = True,
        is_classifier: bool = True,
    ) -> None:
        """Compare a model's inputs and invisible settings with the description of the weights that it starts from.

        Args:
            config: The model section of a configuration.
            path: A run or weights file, if there is one; one without description is taken as it is.
            may_differ: Settings that differ on purpose.
            is_init: Whether a training run starts from the weights, by --init; otherwise they are used as they are.
            is_classifier: Whether the model is one; an encoder goes with any ``classifier_settings`` of the weights.

        Raises:
            UserError: a setting differs, or ``may_differ`` names none that could.
        """
        if path is None:
            if may_differ:
                raise UserError("init_may_differ needs a run or file to start from: give --init")
            return
        for name in may_differ or ():
            if name not in self.invisible_settings:
                raise UserError(f"--init_may_differ {name}: {near_matches(name, self.invisible_settings)}")
        trained = self.read_model_config(path)
        if trained is None:
            return
        before, now = self.resolved(trained), self.resolved(config)
        for name in self.inputs:
            if before.get(name) != now.get(name):
                cure = f"leave out model.{name}"
                if is_init:
                    value = before.get(name)
                    cure = f"give --model.{name} {value} and such data, or leave it to the run, or train without --init"
                raise UserError(
                    f"{path} was trained with model.{name} {before.get(name)!r}, this model has {now.get(name)!r}, "
                    f"which its first layer does not fit; {cure}"
                )
        names = self.trained_with(self.invisible_settings, read_description(path))
        if not is_classifier:
            names = [name for name in names if name not in self.classifier_settings]
        for name in names:
            values = before.get(name), now.get(name)
            is_revealed = name in self.revealed_values and self.revealed_values[name] in values
            if values[0] != values[1] and not is_revealed and name not in (may_differ or ()):
                cure = f"leave out model.{name}"
                if is_init:
                    cure = (
                        f"set --model.{name} as there, or say that it is meant with --init_may_differ {name}"
                    )
                raise UserError(
                    f"{path} was trained with model.{name} {before.get(name)!r}, this model has {now.get(name)!r}: "
                    f"even where its weights fit, they would mean something else; {cure}"
                )

    def start_from(
        self, model: nn.Module, config: Config, path: str | Path, *, keep_head: bool = True
    ) -> LoadReport:
        """Load the weights of a run or weights file into a model that a command made.

        Args:
            model: Made from ``config``.
            config: The model section of a configuration.
            path: A run or weights file.
            keep_head: As in :class:`LoadInit`.

        Raises:
            UserError: the weights do not fit; the message names the options with which they do.
        """
        return self.load_init(
            model, path, keep_head=keep_head, fitting_options=partial(self.options_as_trained, config, path)
        )

    def options_as_trained(self, config: Config, path: str | Path, converted: Converted | None = None) -> str:
        """The options that turn a command's model section into that of some weights; empty if nothing describes them.

        Args:
            config: The model section.
            path: A run or weights file.
            converted: What it holds, if another project wrote it.
        """
        if converted is None:
            trained, description = self.read_model_config(path), read_description(path)
        else:
            trained = read_settings(self.config, converted.model, path)
            description = {"holds": converted.holds}
        if trained is None:
            return ""
        before, given = self.resolved(trained), config.arguments()
        shared = {name: value for name, value in given.items() if name in before}
        now = self.resolved(self.config(trained.name, **shared))
        settings = [entry.name for entry in fields(config) if entry.name not in ("name", *TRAINING_ONLY)]
        names = self.trained_with(settings, description)
        other = {name: before[name] for name in names if before.get(name) not in (None, now.get(name))}
        options = format_options({"name": trained.name, **other}, "model.")
        # a text cannot be null by itself on a command line, but in a section
        unset = [f"{name}: null" for name in names if name in given and before.get(name) is None]
        return " ".join([*options, *([f"--model '{{{', '.join(unset)}}}'"] if unset else [])])

    def classifier(
        self, path: str | Path, changes: Changes = NO_CHANGES
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """A classifier, in evaluation mode, and its class names.

        Args:
            path: A run or weights file.
            changes: Settings that differ from the run's, such as another size to resample to.

        Raises:
            UserError: nothing there, or the weights of something else.
        """
        config, description = self.read_model_config(path, changes), read_description(path)
        if config is None or description.get("holds") != "classifier":
            weights_file(path)  # says so when there is nothing at all
            holds = in_one_line(description.get("holds", "nothing"))
            if holds in self.loaders:
                raise UserError(
                    f"{path} is a {holds}, and this needs a classifier or an encoder: measure it with the command "
                    "evaluate, or read it in Python with load"
                )
            raise UserError(
                f"{path} does not describe a classifier (its .json says: {holds}); give a run that trained one, such "
                "as one of finetune"
            )
        classes = tuple(description["classes"])
        create = self.create_probed if description.get("task") == "linear-probe" else self.create_classifier
        model = create_from_description(lambda: create(config, len(classes)), path, changes)
        return load_whole(model, path, self.load_init), classes

    def encoder(self, path: str | Path, changes: Changes = NO_CHANGES) -> nn.Module:
        """The model that gives features, in evaluation mode: a whole classifier, or a pretraining run's encoder.

        Args:
            path: A run or weights file.
            changes: Settings that differ from the run's, such as another size to resample to.

        Raises:
            UserError: nothing there, no description of its model, or the weights of something else.
        """
        config = self.read_model_config(path, changes)
        if config is None:
            weights_file(path)  # says so when there is nothing at all
            raise UserError(
                f"{path} has no .json that describes its model: give a run's directory or its weights file"
            )
        if read_description(path).get("classes"):
            return self.classifier(path, changes)[0]
        model = create_from_description(lambda: self.create_backbone(config), path, changes)
        return load_whole(model, path, self.load_init)

    def encoder_or_classifier(
        self, path: str | Path, changes: Changes = NO_CHANGES
    ) -> tuple[Config, dict[str, Any]]:
        """The configuration and the description of a run or weights file that holds an encoder or a classifier.

        Args:
            path: A run or weights file.
            changes: Settings that differ from the run's, such as the size of its inputs.

        Raises:
            UserError: nothing there, or the weights of something else.
        """
        config, description = self.read_model_config(path, changes), read_description(path)
        if config is None or description.get("holds") not in ("encoder", "classifier"):
            weights_file(path)  # says so when there is nothing at all
            holds = in_one_line(description.get("holds", "nothing"))
            raise UserError(
                f"{path} describes neither an encoder nor a classifier (its .json says: {holds}); give a run of "
                "pretrain, finetune or linear-probe"
            )
        return config, description

    def load(self, path: str | Path) -> nn.Module:
        """The model of a run, in evaluation mode, in the sizes that it was trained in.

        A classifier where the run trained one (its ``classes`` name the outputs), a model of a further kind where it
        trained that, else the pretrained encoder.

        Args:
            path: A run's directory or weights file.

        Raises:
            UserError: nothing there, or no description of its model.
        """
        description = read_description(path)
        if description.get("holds") in self.loaders:
            return self.loaders[description["holds"]](path)
        model, config = self.encoder(path), self.read_model_config(path)
        assert config is not None  # else there would be no encoder
        model.classes = tuple(description.get("classes") or ())  # type: ignore[assignment]
        self.on_load(model, config, description)
        return model


def create_from_description(
    create: Callable[[], nn.Module], path: str | Path, changes: Changes = NO_CHANGES
) -> nn.Module:
    """Build the model that a run or weights file describes, unless it claims more parameters than its file has bytes.

    Args:
        create: Builds it.
        path: The run or weights file.
        changes: Settings that differ from the description's.

    Raises:
        UserError: no model can be built with the description and the changes, or only a larger one.
    """
    file, json_file = weights_file(path), description_file(path)
    size = file.stat().st_size
    try:
        parameters = count_parameters(create)
        if parameters <= size:
            return create()
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if changes:
            differing = ", ".join(f"model.{name} {value!r}" for name, value in changes.items())
            raise UserError(f"{path} makes no model with {differing}: {reason(error)}") from error
        raise UserError(
            f"{json_file} does not describe a model that can be made ({reason(error)}); export the run again"
        ) from error
    raise UserError(
        f"{json_file} describes a model of {parameters:,} parameters, more than the {size:,} bytes of {file} can hold; "
        "copy both again, or export the run again"
    )


def count_parameters(create: Callable[[], nn.Module]) -> int:
    """The number of values in a model's state, counted without allocating them; 0 where it cannot be built like that.

    Raises:
        RuntimeError, TypeError: no model has such sizes.
    """
    try:
        with torch.device("meta"):
            return sum(value.numel() for value in create().state_dict().values())
    except (RuntimeError, TypeError) as error:
        if "meta" not in str(error):  # as in "Tensor.item() cannot be called on meta tensors"
            raise
        return 0


def load_whole(model: nn.Module, path: str | Path, load_init: LoadInit) -> nn.Module:
    """Load a model whose file must have every parameter; return it in evaluation mode.

    Raises:
        UserError: some are missing, all of which are named.
    """
    report = load_init(model, path)
    if report.missing:
        raise UserError(
            f"{report.source} lacks {', '.join(report.missing)}: it does not hold a complete model"
        )
    return model.eval()
