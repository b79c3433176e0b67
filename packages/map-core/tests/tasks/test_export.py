"""What cannot be exported is refused in a sentence, and leaves no file; the domains' test_export.py export models."""

import pytest
import torch
from torch import nn

from map_core.errors import UserError
from map_core.tasks import onnx_file
from map_core.tasks.export import export_model, largest_difference, reporting_export_errors


def test_an_ending_of_another_format_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"model\.onnx does not end in \.pt2, as files of torch-export do: rename it"
    ):
        export_model(nn.Identity(), torch.zeros(1, 2), tmp_path / "model.onnx", format="torch-export")


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_file, "REQUIRED_PACKAGES", ("onnx", "no_such_package"))
    message = "needs no_such_package, which this environment lacks: pip install no_such_package, or choose"
    with pytest.raises(UserError, match=message):
        export_model(nn.Identity(), torch.zeros(1, 2), tmp_path / "model.onnx", format="onnx")


def test_weights_beyond_what_a_file_holds_are_refused(tmp_path):
    with torch.device("meta"):
        model = nn.Linear(2**15, 2**15, bias=False)  # 4 GiB
    message = r"an ONNX file holds 2 GiB and the model has 4\.0 GiB of weights: choose --format torch-export"
    with pytest.raises(UserError, match=message):
        export_model(model, torch.zeros(1, 2**15), tmp_path / "model.onnx", format="onnx")


@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_results_that_differ_are_refused(error):
    expected = torch.ones(2), torch.tensor([1.0, 2.0])
    results = [expected[0], expected[1] + 1e-4]
    assert largest_difference(results, expected) == pytest.approx(1e-4, rel=0.01)
    with pytest.raises(UserError, match=r"results differ from the model's by up to .*, so it was not kept"):
        largest_difference([expected[0], expected[1] + error], expected)


def test_an_exporters_error_is_reported_in_one_line():
    message = r"cannot be written as onnx by torch .* \(ValueError: no rule for x\); try another --format"
    with pytest.raises(UserError, match=message), reporting_export_errors("onnx"):
        raise ValueError("no rule for x\nand many lines of a graph")
