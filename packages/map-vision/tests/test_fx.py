"""Models under torch.fx and torchvision's extractor, in a process of its own: the shape checker sees no tracers."""

import json
import textwrap

import pytest
import warm

CASES = {
    "hybridnet": ("hybridnet_tiny_patch16_224", {"layout": "(MMMT)x2"}),
    "mambar": ("mambar_tiny_patch16_224", {"layout": "Mx2"}),
    "vit": ("map_vit_tiny_patch16_224", {"layout": "Tx2"}),
    "pretrained form": (
        "hybridnet_tiny_patch16_224",
        {"num_registers": 0, "global_pool": "avg", "layout": "MT"},
    ),
    "all tokens": ("hybridnet_tiny_patch16_224", {"global_pool": "", "layout": "MT"}),
    "hilbert, fourier": (
        "hybridnet_tiny_patch16_224",
        {"order": "hilbert", "position": "fourier", "layout": "MT"},
    ),
    "block, sincos": ("hybridnet_tiny_patch16_224", {"order": "block", "position": "sincos", "layout": "MT"}),
    "random, mlp": ("hybridnet_tiny_patch16_224", {"order": "random", "position": "mlp", "layout": "MT"}),
    "four ways": ("hybridnet_tiny_patch16_224", {"layout": "FT"}),
    "one way": ("hybridnet_tiny_patch16_224", {"bidirectional": False, "layout": "MT"}),
    "mambavision": ("map_mambavision_tiny", {"embed_dim": 64, "stem_dim": 8, "depths": (1, 1, 2, 2)}),
    "layer scales": (
        "map_mambavision_base",
        {"embed_dim": 64, "stem_dim": 8, "depths": (1, 1, 2, 2), "window_size": (3, 2)},
    ),
}

SCRIPT = """
    import json, sys
    import timm, torch
    from torchvision.models.feature_extraction import create_feature_extractor
    import map_vision
    from map_core.ops import Linear

    def message(call):
        try:
            call()
        except Exception as error:
            return type(error).__name__ + ": " + str(error)

    def outcome(name, changes):
        model = timm.create_model(name, img_size=64, num_classes=3, **{"embed_dim": 24, **changes}).eval()
        images, other = torch.randn(2, 3, 64, 64), torch.randn(3, 3, 32, 96)
        part = "levels.3" if "mambavision" in name else "encoder.blocks.1"
        graph = torch.fx.symbolic_trace(model)
        extractor = create_feature_extractor(model, {part: "inner", "head": "scores"})
        for layer in model.modules():
            if isinstance(layer, Linear):  # graphs multiply with PyTorch's operator on every processor
                layer.backend = "torch"
        outputs = []
        hook = model.get_submodule(part).register_forward_hook(lambda *call: outputs.append(call[-1]))
        scores = model(images)
        hook.remove()
        extracted = extractor(images)
        return {
            "graph": torch.equal(graph(images), scores),
            "another size": torch.equal(graph(other), model(other)),
            "inner": torch.equal(extracted["inner"], outputs[0]),
            "scores": torch.equal(extracted["scores"], scores),
            "refusal": message(lambda: graph(images[:, :1])),
        }

    torch.manual_seed(0)
    results = {}
    for case, (name, changes) in json.loads(sys.argv[1]).items():
        results[case] = message(lambda: results.update({case: outcome(name, changes)})) or results[case]
    print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes():
    printed = warm.run("-c", textwrap.dedent(SCRIPT), json.dumps(CASES))
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_graphs_and_extracted_features_are_the_models_own(outcomes, case):
    assert outcomes[case] == {
        "graph": True,
        "another size": True,
        "inner": True,
        "scores": True,
        "refusal": "UserError: images have 1 channels, the model takes in_chans=3; "
        "convert the images or create the model with that in_chans",
    }
