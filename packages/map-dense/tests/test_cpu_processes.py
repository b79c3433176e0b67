"""Processes without GPUs: the model is wrapped as the config says."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from map_dense.cpu_processes import CpuProcessesRunner


@pytest.mark.parametrize("settings", [{}, {"find_unused_parameters": True}])
def test_unused_parameters_are_looked_for_where_the_config_says_so(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Runner, "wrap_model", lambda self, wrapper, model: wrapper)
    monkeypatch.setenv("LOCAL_RANK", "0")
    runner = object.__new__(CpuProcessesRunner)
    runner._distributed, runner.cfg = True, Config(settings)
    wrapper = runner.wrap_model(None, torch.nn.Identity())
    assert wrapper["find_unused_parameters"] is settings.get("find_unused_parameters", False)
    given = runner.wrap_model({"find_unused_parameters": False}, torch.nn.Identity())
    assert given["find_unused_parameters"] is False
