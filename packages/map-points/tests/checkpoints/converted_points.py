"""What this project's models compute of published point checkpoints, under the published names."""

import torch
from torch.func import functional_call

from map_core import Draw, TokenMask
from map_core.tasks.families import family_of
from map_core.tasks.weights import read_settings
from map_core.tokens import gather_tokens
from map_points.checkpoints import FAMILIES
from map_points.factory import PointModelConfig, create_backbone, create_classifier
from map_points.pretraining import PointObjectiveConfig, build_objective
from map_points.segmentation.task import described_segmenter


class FixedMask:
    """A masking that hides the same patches every time (True is hidden)."""

    scope = "all"

    def __init__(self, hidden):
        self.hidden = hidden

    def __call__(self, tokens, draw, regions=None):
        order = torch.argsort(self.hidden.to(torch.uint8), dim=1, stable=True)
        kept = int((~self.hidden[0]).sum())
        return TokenMask(self.hidden, order[:, :kept], order[:, kept:])


def convert(state):
    return family_of(state, FAMILIES).convert(state)


def config_of(converted, changes):
    return read_settings(PointModelConfig, {**converted.model, **changes}, "the checkpoint")


def seen(module, found, name, *, arguments=False):
    """Keep what a module gives (or reads) in its last call."""
    module.register_forward_hook(lambda _, x, y: found.update({name: x[0] if arguments else y}))


def classify(state, points, **changes):
    """Arrays of a classifier, as ``published_points`` names them."""
    converted, found = convert(state), {}
    model = create_classifier(config_of(converted, changes), len(converted.classes)).eval()
    block = model.encoder.blocks[0]
    seen(model.patch_embed, found, "neighborhood", arguments=True)
    seen(model.patch_embed, found, "tokens")
    seen(block, found, "block0")
    seen(model.head, found, "pooled", arguments=True)
    if hasattr(block, "local"):
        seen(block.mixer, found, "block0_mixer")
    with torch.no_grad():
        tokens = model.tokenize(points)
    if model.second_order is None:
        found["center"] = tokens.position
    logits = functional_call(model, converted.state, (points,))
    found["normed"] = functional_call(Features(model), prefixed(converted.state), (points,))
    if model.second_order is not None:
        found["sequence_in"] = functional_call(Sequence(model), prefixed(converted.state), (points,))
        back = tokens.origin[:, : tokens.length // 2].argsort(1)  # into the order of sampling
        found |= {key: gather_tokens(found[key], back) for key in ("neighborhood", "tokens")}
    return found | {"logits": logits, "loss": logits.square().mean()}


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
    converted, found = convert(state), {}
    backbone = create_backbone(config_of(converted, changes))
    settings = {**converted.objective, "decoder_heads": decoder_heads}
    objective = build_objective(
        backbone, read_settings(PointObjectiveConfig, settings, "the checkpoint")
    ).eval()
    objective.masking = FixedMask(hidden)
    seen(backbone.encoder.norm, found, "visible_features")
    seen(objective.decoder, found, "decoded")
    fitting = {key: value for key, value in converted.state.items() if key in backbone.state_dict()}
    whole = {f"backbone.{key}": value for key, value in fitting.items()} | converted.rest
    result = functional_call(objective, whole, (points, Draw.of_batch(len(points), seed=0)))
    prediction = result.prediction.unflatten(-1, (-1, 3))
    back = result.tokens.origin.argsort(1)  # into the order of sampling
    found |= {
        "neighborhood": gather_tokens(result.tokens.target, back),
        "center": gather_tokens(result.tokens.position, back),
    }
    return found | {"prediction": prediction, "loss": result.loss}


def segment(state, points, category, **changes):
    """Arrays of a part segmenter."""
    converted, found = convert(state), {}
    model = described_segmenter(config_of(converted, changes), converted.more).eval()
    seen(model.category, found, "label_feature")
    seen(model.propagate, found, "propagated")
    scores = functional_call(model, converted.state, (points, category))
    return found | {"log_prob": scores.log_softmax(-1)}
