"""What this project's models compute with published checkpoints, with gradients under the published names."""

import torch
from torch.func import functional_call

from map_core import Draw, TokenMask
from map_core.registers import spread_places
from map_core.tasks.families import family_of
from map_core.tasks.weights import read_settings
from map_vision.checkpoints import FAMILIES
from map_vision.factory import ModelConfig, create_backbone, create_model
from map_vision.pretraining import ImageObjectiveConfig, build_objective


class FixedMask:
    """A masking that always hides the same patches (True is hidden), and no global token."""

    scope = "all"

    def __init__(self, hidden):
        self.hidden = hidden

    def __call__(self, tokens, draw, regions=None):
        front = self.hidden.new_zeros(len(self.hidden), tokens.num_global)
        hidden = torch.cat([front, self.hidden], dim=1)
        order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)
        num_visible = int((~hidden[0]).sum())
        return TokenMask(hidden, order[:, :num_visible], order[:, num_visible:])


def config_of(converted, changes):
    return read_settings(ModelConfig, {**converted.model, **changes}, "the checkpoint")


def record(module, activations, name, *, arguments=False):
    """Record the input (or the output) of every call of a module."""
    module.register_forward_hook(
        lambda _, x, y: activations.setdefault(name, []).append(x[0] if arguments else y)
    )


def classify(state, images, **changes):
    """Arrays of a classifier, as ``published`` names them; ``sequence`` without registers."""
    converted = family_of(state, FAMILIES).convert(state)
    model = create_model(config_of(converted, changes), len(converted.classes)).eval()
    activations = {}
    if hasattr(model.encoder.blocks[0], "mixer"):
        record(model.encoder.blocks[0].mixer, activations, "layer0_mixer")
    record(model.encoder.blocks[-1], activations, "residual_last", arguments=True)
    record(model.encoder.norm, activations, "sequence")
    record(model.head, activations, "features", arguments=True)
    logits = functional_call(model, converted.state, (images,))
    arrays = {name: values[0] for name, values in activations.items()}
    return arrays | {"logits": logits, "loss": logits.square().mean()}


def without_registers(sequence, num_patches):
    """Drop the registers from a published sequence."""
    registers = spread_places(sequence.shape[1] - num_patches, num_patches)
    return sequence[:, [i for i in range(sequence.shape[1]) if i not in registers]]


def pretrain(state, images, hidden, *, decoder_heads, **changes):
    """Arrays of an objective from a file with a decoder: features, predictions of hidden patches, loss."""
    converted = family_of(state, FAMILIES).convert(state)
    backbone = create_backbone(config_of(converted, changes))
    settings = {**converted.objective, "decoder_heads": decoder_heads}
    objective = build_objective(
        backbone, read_settings(ImageObjectiveConfig, settings, "the checkpoint")
    ).eval()
    objective.masking = FixedMask(hidden)
    activations = {}
    record(backbone.encoder.norm, activations, "encoder")
    parameters = {
        f"backbone.{key}": value for key, value in converted.state.items()
    } | converted.decoder_state
    result = functional_call(objective, parameters, (images, Draw.of_batch(len(images), seed=0)))
    return {"encoder": activations["encoder"][0], "prediction": result.prediction, "loss": result.loss}
