"""What cannot be exported is refused in a sentence, and leaves no file; the domains' test_export.py export models."""

import resource

import pytest
import torch
from torch import nn

from map_core.errors import UserError
from map_core.tasks import export, onnx_file
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


def test_results_of_another_shape_are_refused():
    message = (
        r"results have shape \(2,\) where the model's have \(2, 1\), so it was not kept; try another --format"
    )
    with pytest.raises(UserError, match=message):
        largest_difference([torch.ones(2)], [torch.ones(2, 1)])


def right_at(*lengths):
    """Runs a program whose results are wrong at all other lengths."""
    return lambda path, inputs: [inputs if inputs.shape[1] in lengths else inputs + 1]


def test_a_program_with_a_free_axis_is_compared_at_another_size(monkeypatch, tmp_path):
    def exported(**options):
        return export_model(
            nn.Identity(), torch.zeros(1, 4), tmp_path / "model.pt2", format="torch-export", **options
        )

    monkeypatch.setattr(export, "run_archive", right_at(4))
    assert exported() == 0
    (tmp_path / "model.pt2").unlink()
    with pytest.raises(UserError, match=r"results differ from the model's by up to 1, so it was not kept"):
        exported(free={1: "length"})
    assert not (tmp_path / "model.pt2").exists()
    monkeypatch.setattr(export, "run_archive", right_at(4, 8))
    assert exported(free={1: "length"}) == 0


def test_a_program_that_refuses_another_size_is_to_be_written_for_one():
    message = (
        r"cannot be written as onnx for any size by .* \(AssertionError: Guard failed\); set --any_size false"
    )
    with pytest.raises(UserError, match=message), reporting_export_errors("onnx", any_size=True):
        raise AssertionError("Guard failed")


def test_an_exporters_error_is_reported_in_one_line():
    message = r"cannot be written as onnx by torch .* \(ValueError: no rule for x\); try another --format"
    with pytest.raises(UserError, match=message), reporting_export_errors("onnx"):
        raise ValueError("no rule for x\nand many lines of a graph")


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_a_full_disk_is_reported_in_one_sentence(tmp_path, name):
    """The size of files is limited to less than the weights take."""
    if name == "model.onnx":
        pytest.importorskip("onnxscript")
    out, limits = tmp_path / name, resource.getrlimit(resource.RLIMIT_FSIZE)
    format = "onnx" if name == "model.onnx" else "torch-export"
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=rf"cannot write {out} \(File too large\); check that disk, then repeat"
        ):
            export_model(nn.Linear(100, 100).eval(), torch.zeros(1, 100), out, format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
