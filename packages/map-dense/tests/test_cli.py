"""The commands: paths of configs, their headers, their parameter groups."""

import subprocess
import sys
from pathlib import Path

import pytest

from map_dense import catalogue
from map_dense.cli import main

FIELDS = ("Command", "Hardware", "Time", "Expected", "Status", "Settings")


def test_the_path_of_a_config_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    name = "upernet_hybridnet-small_vim-code-60k_ade20k-512x512"
    assert main(["config-path", name]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.is_file()
    assert path.stem == name


def test_an_unknown_config_is_reported_with_near_matches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-path", "upernet_hybridnet-mini_cpu_camvit"]) == 2
    error = capsys.readouterr().err
    assert (
        "config 'upernet_hybridnet-mini_cpu_camvit' is unknown; did you mean upernet_hybridnet-mini_cpu_camvid"
        in error
    )


def test_all_configs_are_listed_with_model_size_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    entries = capsys.readouterr().out.split("\n  ")
    output = "\n  ".join(entries)
    for name in catalogue.config_names():
        assert name in output
        assert catalogue.read_header(catalogue.config_path(name))["Status"] in output
    assert output.count(" parameters\n") == len(catalogue.config_names())
    assert "67,081,772 parameters" in output


@pytest.mark.parametrize("name", catalogue.config_names())
def test_every_config_states_command_hardware_time_number_and_status(name: str) -> None:
    header = catalogue.read_header(catalogue.config_path(name))
    assert not [field for field in FIELDS if not header.get(field)]
    assert any(known in header["Command"] for known in catalogue.config_names())  # itself or a similar one


@pytest.mark.parametrize("path", sorted(catalogue.CONFIGS.rglob("*.py")), ids=lambda path: path.stem)
def test_bases_lie_inside_this_package(path: Path) -> None:
    assert "::" not in path.read_text()


def test_the_layer_decay_of_a_config_counts_every_parameter_once_and_nothing_else_is_printed() -> None:
    name = "upernet_hybridnet-tiny_vim-code-60k_ade20k-512x512"
    command = [
        sys.executable,
        "-m",
        "map_dense",
        "layer-decay",
        name,
    ]  # a process that has not imported OpenMMLab
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    header, *table = printed.strip().splitlines()
    assert header.split() == ["group", "depth", "lr", "scale", "weight", "decay", "tensors", "parameters"]
    rows = [line.rsplit(maxsplit=5) for line in table]
    assert sum(int(row[-1].replace(",", "")) for row in rows) == 38_028_716
    assert {int(row[1]) for row in rows} == set(range(34))
    first = float(next(row[2] for row in rows if row[1] == "0"))
    assert first == pytest.approx(0.92 ** (33 * 24 / 32), abs=1e-4)


@pytest.mark.parametrize("name", catalogue.config_names())
def test_every_config_shows_its_layer_decay_or_that_it_has_none(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, (out, err) = main(["layer-decay", name]), capsys.readouterr()
    if "mambavision" in name and "upernet" in name:
        assert (status, "trains without layer decay: its optim_wrapper.constructor is Default" in err) == (
            2,
            True,
        )
    else:
        assert (status, "decay" in out.splitlines()[0]) == (0, True), err


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("notes.txt", "notes"),
        ("broken.py", "model = dict("),
        ("empty.py", ""),
        ("names.py", "model = dict(type=nothing)"),
        ("keys.py", "model = {}['backbone']"),
    ],
)
def test_a_file_that_is_no_config_is_reported_in_one_sentence(
    file: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / file).write_text(text)
    assert main(["layer-decay", str(tmp_path / file)]) == 2
    assert capsys.readouterr().err.startswith("map-dense: error: ")


MINI = "upernet_hybridnet-mini_cpu_camvid"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))",
            "layer decay needs paramwise_cfg=dict(decay_rate=...); 1.0 means no decay",
        ),
        (
            "optim_wrapper = dict(paramwise_cfg=dict(rate=0.9))",
            "paramwise_cfg option 'rate' is unknown; did you mean decay_rate",
        ),
        (
            "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4))",
            "layer decay needs lr and weight_decay in optim_wrapper.optimizer",
        ),
        ("optim_wrapper = dict(paramwise_cfg=dict(decay_rate='0.9'))", "makes no optimizer ("),
        ("model = dict(backbone=dict(type='Nothing'))", "mine.py makes no model (KeyError: "),
    ],
)
def test_what_training_would_refuse_has_no_layer_decay(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(f"_base_ = {str(catalogue.config_path(MINI))!r}\n{text}\n")
    assert main(["layer-decay", str(tmp_path / "mine.py")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train_pipeline.99.type=x", "train_pipeline.99.type=x cannot be merged into the config (KeyError: "),
        ("model.backbone.out_indices=[1,(2]", "cannot be read as KEY=VALUE (AssertionError: "),
        ("train_dataloader.dataset=3", f"data_root cannot be filled into {MINI} ("),
    ],
)
def test_an_option_that_does_not_fit_the_config_is_reported_in_one_sentence(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["write-config", MINI, str(tmp_path / "out.py"), f"data_root={tmp_path}", option]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.py").exists()


def test_the_layer_decay_of_a_users_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = catalogue.config_path("upernet_hybridnet-mini_cpu_camvid")
    config_file = tmp_path / "mine.py"
    config_file.write_text(
        f"_base_ = {str(base)!r}\noptim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.5))\n"
    )
    assert main(["layer-decay", str(config_file)]) == 0
    assert "0.5000" in capsys.readouterr().out


def test_a_missing_toolbox_is_reported_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mmengine.config", None)  # as if mmengine were not there
    assert main(["layer-decay", "upernet_hybridnet-mini_cpu_camvid"]) == 2
    assert (
        "pip install -c constraints.txt './packages/map-dense[mmseg]' (or mmdet)" in capsys.readouterr().err
    )
