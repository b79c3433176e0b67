"""What this project's models compute from published point checkpoints, under the published names."""

import torch
from torch.func import functional_call

from map_core import Draw, TokenMask
from map_core.tasks.families import family_of
from map_core.tasks.weights import read_settings
from map_core.tokens import gather_tokens
from map_points.checkpoints import FAMILIES
from map_points.factory import PointModelConfig, create_backbone, create_classifier
from map_points.pretraining import PointObjectiveConfig, build_objective
from map_points.segmentation.task import segmenter_from_description


class FixedMask:
    """A masking that hides the same patches every time (True is hidden)."""

    scope = "all"

    def __init__(self, hidden):
        self.hidden = hidden

    def __call__(self, tokens, draw, regions=None):
        order = torch.argsort(self.hidden.to(torch.uint8), dim=1, stable=True)
        num_visible = int((~self.hidden[0]).sum())
        return TokenMask(self.hidden, order[:, :num_visible], order[:, num_visible:])


def convert(state):
    return family_of(state, FAMILIES).convert(state)


def config_of(converted, changes):
    return read_settings(PointModelConfig, {**converted.model, **changes}, "the checkpoint")


def record_output(module, arrays, name, *, arguments=False):
    """Record the output (or the input) of a module's last call."""
    module.register_forward_hook(lambda _, x, y: arrays.update({name: x[0] if arguments else y}))


def classify(state, points, **changes):
    """Arrays of a classifier, as ``published_points`` names them."""
    converted, arrays = convert(state), {}
    model = create_classifier(config_of(converted, changes), len(converted.classes)).eval()
    block = model.encoder.blocks[0]
    record_output(model.patch_embed, arrays, "neighborhood", arguments=True)
    record_output(model.patch_embed, arrays, "tokens")
    record_output(block, arrays, "block0")
    record_output(model.head, arrays, "pooled", arguments=True)
    if hasattr(block, "local"):
        record_output(block.mixer, arrays, "block0_mixer")
    with torch.no_grad():
        tokens = model.tokenize(points)
    if model.second_order is None:
        arrays["center"] = tokens.position
    logits = functional_call(model, converted.state, (points,))
    arrays["normed"] = functional_call(Features(model), prefixed(converted.state), (points,))
    if model.second_order is not None:
        arrays["sequence_in"] = functional_call(Sequence(model), prefixed(converted.state), (points,))
        sampling_order = tokens.origin[:, : tokens.length // 2].argsort(1)  # into the order of sampling
        arrays |= {key: gather_tokens(arrays[key], sampling_order) for key in ("neighborhood", "tokens")}
    return arrays | {"logits": logits, "loss": logits.square().mean()}


def prefixed(state):
    return {f"model.{key}": value for key, value in state.items()}


class Features(torch.nn.Module):
    """A model's features, as a module that takes other weights."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, points):
        return self.model.forward_features(points)


class Sequence(Features):
    """Its tokens, without positions."""

    def forward(self, points):
        return self.model.tokenize(points).embedding


def pretrain(state, points, hidden, *, decoder_heads=1, **changes):
    """Arrays of an objective whose file has a decoder: features, predictions of hidden patches, loss."""
    converted, arrays = convert(state), {}
    backbone = create_backbone(config_of(converted, changes))
    settings = {**converted.objective, "decoder_heads": decoder_heads}
    objective = build_objective(
        backbone, read_settings(PointObjectiveConfig, settings, "the checkpoint")
    ).eval()
    objective.masking = FixedMask(hidden)
    record_output(backbone.encoder.norm, arrays, "visible_features")
    record_output(objective.decoder, arrays, "decoded")
    backbone_state = {key: value for key, value in converted.state.items() if key in backbone.state_dict()}
    objective_state = {
        f"backbone.{key}": value for key, value in backbone_state.items()
    } | converted.decoder_state
    result = functional_call(objective, objective_state, (points, Draw.of_batch(len(points), seed=0)))
    prediction = result.prediction.unflatten(-1, (-1, 3))
    sampling_order = result.tokens.origin.argsort(1)  # into the order of sampling
    arrays |= {
        "neighborhood": gather_tokens(result.tokens.target, sampling_order),
        "center": gather_tokens(result.tokens.position, sampling_order),
    }
    return arrays | {"prediction": prediction, "loss": result.loss}


def segment(state, points, category, **changes):
    """Arrays of a part segmenter."""
    converted, arrays = convert(state), {}
    model = segmenter_from_description(config_of(converted, changes), converted.extra_description).eval()
    record_output(model.category, arrays, "label_feature")
    record_output(model.propagate, arrays, "propagated")
    scores = functional_call(model, converted.state, (points, category))
    return arrays | {"log_prob": scores.log_softmax(-1)}
