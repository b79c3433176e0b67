"""A linear probe: frozen, normalised without affine weights, and a plain classifier in the end."""

import torch
from torch import nn
from toy_domain import ToyNet, ToySamples

from map_core.tasks.probe import LinearProbe


def inputs(count=16):
    return torch.stack([ToySamples(count)[i][0] for i in range(count)])


def test_the_head_reads_batch_normalised_pooled_features():
    probe = LinearProbe(ToyNet(), 3).train()
    with torch.no_grad():
        features = probe.backbone.forward_features(inputs()).mean(1)
    deviation = features.var(0, unbiased=False).add(1e-6).sqrt()
    expected = (features - features.mean(0)) / deviation @ probe.head.weight.T + probe.head.bias
    torch.testing.assert_close(probe(inputs()), expected, rtol=1e-4, atol=1e-5)


def test_the_backbone_stays_in_evaluation_mode_and_gets_no_gradient():
    backbone = ToyNet()
    backbone.extra = nn.Dropout(0.5)
    probe = LinearProbe(backbone, 3).train()
    assert probe.norm.training
    assert not any(module.training for module in backbone.modules())
    probe(inputs()).square().sum().backward()
    trained = {name for name, parameter in probe.named_parameters() if parameter.grad is not None}
    assert trained == {"head.weight", "head.bias"}


def test_folding_the_normalisation_changes_no_output():
    probe, classifier = LinearProbe(ToyNet(), 3), ToyNet(num_classes=3)
    probe.train()
    for _ in range(5):
        probe(inputs())  # running statistics
    nn.init.normal_(probe.head.bias)
    probe.eval().write_into(classifier)
    with torch.no_grad():
        torch.testing.assert_close(classifier.eval()(inputs()), probe(inputs()), rtol=1e-4, atol=1e-5)
