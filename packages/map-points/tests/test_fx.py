"""Point models under torch.fx and torchvision's extractor, without the shape checker, which sees no tracers."""

import json
import textwrap

import pytest
import warm

CASES = {
    "hybridnet3d": ("hybridnet3d", {}),
    "mamba3d": ("mamba3d", {"layout": "Mx2", "scan": "channel_flip"}),
    "normals": ("hybridnet3d", {"in_chans": 6}),
    "pretrained form": ("hybridnet3d", {"class_token": False, "order": "hilbert", "linear_head": True}),
}

SCRIPT = """
    import json, sys
    import torch
    from torchvision.models.feature_extraction import create_feature_extractor
    from map_points.model import create_point_model

    def outcome(name, changes):
        sizes = dict(embed_dim=24, patch_hidden_dim=16, num_heads=4, num_patches=8, patch_size=8)
        model = create_point_model(name, 3, **{**sizes, "layout": "MT", **changes}).eval()
        values = changes.get("in_chans", 3)
        points, other = torch.randn(2, 64, values), torch.randn(5, 48, values)
        outputs = []
        hook = model.encoder.blocks[0].register_forward_hook(lambda *call: outputs.append(call[-1]))
        scores = model(points)
        hook.remove()
        graph = torch.fx.symbolic_trace(model)
        extracted = create_feature_extractor(model, {"encoder.blocks.0": "inner", "head": "scores"})(points)
        return {
            "graph": torch.equal(graph(points), scores),
            "another size": torch.equal(graph(other), model(other)),
            "inner": torch.equal(extracted["inner"], outputs[0]),
            "scores": torch.equal(extracted["scores"], scores),
        }

    torch.manual_seed(0)
    results = {}
    for case, (name, changes) in json.loads(sys.argv[1]).items():
        try:
            results[case] = outcome(name, changes)
        except Exception as error:
            results[case] = type(error).__name__ + ": " + str(error)
    print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes():
    output = warm.run("-c", textwrap.dedent(SCRIPT), json.dumps(CASES))
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_graphs_and_extracted_features_are_the_models_own(outcomes, case):
    assert outcomes[case] == {"graph": True, "another size": True, "inner": True, "scores": True}
