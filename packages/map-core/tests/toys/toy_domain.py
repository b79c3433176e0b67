"""A miniature domain: grids of vectors in three classes of different level, and a small hybrid network."""

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from map_core import GridRegions
from map_core.losses import MaskedMSE
from map_core.objectives.masked_autoregression import MaskedAutoregressionConfig
from map_core.objectives.settings import Settings
from map_core.objectives.simmim import SimMIMConfig
from map_core.tasks.classification import ClassificationConfig
from map_core.tasks.domain import Domain, OpenedData
from map_core.tasks.initial_weights import load_init
from map_core.tasks.pretraining import hide_and_reconstruct
from map_core.tasks.trained_models import ModelConfig, Models
from map_core.testing import GridBackbone, LinearPosition, toy_encoder

ROWS, COLS, CHANNELS = 4, 3, 4
CLASSES = ("low", "middle", "high")
EMPTY = MappingProxyType({})


@dataclass
class ToyDataConfig:
    """Grids of vectors.

    Args:
        count: Training samples.
        root: Folder of the samples.
        flip: Change the sign of every value.
    """

    count: int = 24
    root: str = "toys"
    flip: bool = False


@dataclass
class ToyModelConfig(ModelConfig):
    """A network.

    Args:
        name: Registered name.
        embed_dim: Width.
    """

    name: str = "toy"
    embed_dim: int | None = None


@dataclass
class ToyTargets(Settings):
    """What is predicted.

    Args:
        normalize: Take mean and deviation out of the targets.
    """

    normalize: bool = True

    def target_dim(self, backbone):
        return CHANNELS

    def make_loss(self):
        return MaskedMSE(self.normalize)

    def make_regions(self, backbone):
        return GridRegions("row")

    def make_position(self, backbone, embed_dim):
        return LinearPosition(embed_dim)


@dataclass
class ToyObjectiveConfig(ToyTargets, MaskedAutoregressionConfig):
    decoder_depth: int = 1
    decoder_dim: int = 8
    decoder_heads: int = 2


@dataclass
class ToySimMIMConfig(ToyTargets, SimMIMConfig):
    pass


class ToyNet(GridBackbone):
    """A backbone with the methods of a timm model."""

    def __init__(self, embed_dim=8, num_classes=0):
        super().__init__(CHANNELS, toy_encoder(embed_dim, "MT"))
        self.head_hidden_size = embed_dim
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable=True):
        self.encoder.set_grad_checkpointing(enable)

    def forward_features(self, inputs):
        return self.encode(self.tokenize(inputs)).embedding

    def forward_head(self, x, pre_logits=False):
        x = x.mean(1)
        return x if pre_logits else self.head(x)

    def forward(self, inputs):
        return self.forward_head(self.forward_features(inputs))


class ToySamples:
    """Sample i is of class i modulo 3, whose level is in every value; ``noisy`` ones differ at every read."""

    def __init__(self, count, first=0, *, noisy=False, sign=1):
        self.count, self.first, self.noisy, self.sign = count, first, noisy, sign

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        number = self.first + index
        generator = torch.Generator().manual_seed(number)
        values = torch.randn(ROWS, COLS, CHANNELS, generator=generator) + 2.0 * (number % 3)
        if self.noisy:
            values = values + 0.1 * torch.randn(values.shape)
        return self.sign * values, torch.tensor(number % 3)

    @property
    def names(self):
        return [f"sample {self.first + index}" for index in range(self.count)]


def sign_of(data, trained):
    """Inputs are prepared as in training, whatever the data section says."""
    return -1 if trained.get("flip", data.flip) else 1


def open_data(data, model, purpose, trained=EMPTY):
    sign = sign_of(data, trained)
    return OpenedData(
        description=f"{data.root} for {purpose}",
        classes=() if purpose == "pretrain" else CLASSES,
        train=ToySamples(data.count, noisy=True, sign=sign),
        plain_train=ToySamples(data.count, sign=sign),
        evaluation=ToySamples(10, first=1000, sign=sign),
        preprocessing={"flip": data.flip},
    )


def open_files(files, data, model, trained=EMPTY):
    numbers = [int(name) for name in ([files] if isinstance(files, str) else files)]
    return ToySamples(len(numbers), first=numbers[0], sign=sign_of(data, trained))


def build_objective(backbone, config):
    config.validate()
    return config.build(backbone)


def draw_picture(objective, inputs, path, *, data, ratio=None, seed=0):
    """The picture is an array of the predictions."""
    result = hide_and_reconstruct(objective, inputs, ratio=ratio, seed=seed)
    with Path(path).open("wb") as file:
        np.save(file, result.prediction.numpy())


def thumbnail(samples, index, prepared):
    """A grey picture of the first channel."""
    grey = (127 + 20 * samples[index][0][..., :1]).clamp(0, 255).byte()
    return grey.expand(-1, -1, 3).numpy()


def create_classifier(config, num_classes):
    return ToyNet(**config.arguments(), num_classes=num_classes)


def load_toy(model, path, *, keep_head=True, fitting_options=None):
    return load_init(
        model, path, may_be_missing=("head.",), keep_head=keep_head, fitting_options=fitting_options
    )


def data_defaults(values, description, explicit):
    """A model's own preprocessing takes precedence over the settings of its run."""
    return {**values, **({"flip": description["flip"]} if "flip" in description else {})}


DOMAIN = Domain(
    program="map-toy",
    recipes="map_core",
    sample="toy",
    models=Models(
        config=ToyModelConfig,
        names=("toy",),
        create_classifier=create_classifier,
        create_backbone=lambda config: create_classifier(config, 0),
        probed=lambda config: config,
        create_probed=create_classifier,
        load_init=load_toy,
        inherited_settings=("embed_dim",),
    ),
    data=ToyDataConfig,
    objectives={"masked_autoregression": ToyObjectiveConfig, "simmim": ToySimMIMConfig},
    classification=ClassificationConfig,
    open_data=open_data,
    open_files=open_files,
    build_objective=build_objective,
    draw_picture=draw_picture,
    thumbnail=thumbnail,
    example=lambda config: torch.zeros(1, ROWS, COLS, CHANNELS),
    outputs=len(CLASSES),
    data_defaults=data_defaults,
    rows=4,
)
