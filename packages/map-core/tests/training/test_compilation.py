"""Compiled training computes what plain training does, is resumed to the bit, and compiles a step once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from torch import nn
from toy_task import toy_config

from map_core import UserError
from map_core.testing import toy_encoder, toy_tokens
from map_core.training import compilation
from map_core.training.compilation import compile_model

SCRIPT = Path(__file__).parents[1] / "toys/compiled.py"
CPU = torch.device("cpu")


def test_the_model_and_its_blocks_compiled_train_as_they_do_plain(tmp_path: Path) -> None:
    warm.run(SCRIPT, "eager", tmp_path)


@pytest.mark.usefixtures("unchecked")  # dynamo does not look into the checks of types
@pytest.mark.parametrize("wiring", ["residual", "branch"])
def test_every_block_is_compiled_however_blocks_are_wired(
    wiring: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = list[int]()

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(1)
        return graph.forward

    monkeypatch.setattr(compilation, "BACKEND", count)
    torch.compiler.reset()
    encoder = toy_encoder(16, "MM", wiring=wiring).eval()
    tokens = toy_tokens(embed_dim=16)
    plain = encoder(tokens).embedding
    compile_model(encoder, toy_config(compile="blocks"), CPU)
    torch.testing.assert_close(encoder(tokens).embedding, plain)
    assert compiled


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"compile blocks needs a model with blocks, which Linear lacks"):
        compile_model(nn.Linear(2, 2), toy_config(compile="blocks"), CPU)


def test_a_cpu_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs a C\+\+ compiler on a CPU, and none of g\+\+, clang\+\+ is there"
    ):
        compile_model(nn.Linear(2, 2), toy_config(compile="model"), CPU)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": "whole"}, r"training.compile 'whole' is unknown; known names: blocks, model, none"),
        (
            {"compile_mode": "fast"},
            r"training.compile_mode 'fast' is unknown; did you mean default",
        ),
        (
            {"compile_mode": "max-autotune"},
            r"training.compile_mode max-autotune has no effect with training.compile none: leave it at default",
        ),
        ({"recompute_every": 0}, r"training.recompute_every must be at least 1; got 0"),
        (
            {"recompute_every": 2},
            r"recompute_every 2 chooses blocks of activation_checkpointing, which is off",
        ),
        (
            {"compile": "model", "compile_mode": "reduce-overhead", "accumulation_steps": 2},
            r"cannot be summed over accumulation_steps \(2\)",
        ),
    ],
)
def test_settings_that_no_run_can_have(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy_config(**changes).validate()
