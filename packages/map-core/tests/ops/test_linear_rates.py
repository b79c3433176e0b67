"""Which library multiplies is measured once for a processor, and the result holds for every later process."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from map_core.commands.environment import describe_environment
from map_core.ops import linear
from map_core.ops.linear.interface import REGISTRY
from map_core.ops.linear.onednn import MIN_MULTIPLICATIONS
from map_core.ops.linear.rates import Rates, cached_rates, measured_rates, rates_file, read_rates, store_rates

FAST, SLOW, ALIKE = Rates(200.0, 100.0), Rates(60.0, 100.0), Rates(110.0, 100.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty user cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_rates.cache_clear()
    yield tmp_path
    cached_rates.cache_clear()


def automatic_choice(size: int = MIN_MULTIPLICATIONS) -> str:
    return REGISTRY.choose("auto", "cpu", torch.float32, size)


@pytest.mark.parametrize(
    ("rates", "size", "expected"),
    [
        (FAST, MIN_MULTIPLICATIONS, "onednn"),
        (FAST, MIN_MULTIPLICATIONS - 1, "torch"),
        (SLOW, MIN_MULTIPLICATIONS, "torch"),
        (ALIKE, MIN_MULTIPLICATIONS, "torch"),  # within the error of a measurement
    ],
)
def test_auto_takes_onednn_where_it_is_faster_by_much(rates: Rates, size: int, expected: str) -> None:
    assert store_rates(rates_file(), rates) == rates
    assert automatic_choice(size) == expected
    assert REGISTRY.choose("auto", "cpu", torch.float64, size) == "torch"
    assert REGISTRY.choose("auto", "cuda", torch.float32, size) == "torch"


def test_other_processors_are_not_measured(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert automatic_choice() == "torch"
    assert not list(cache.iterdir())


def test_the_first_large_product_measures_and_later_processes_keep_to_it() -> None:
    values = torch.ones(256, 128), torch.ones(256, 128)
    assert not rates_file().exists()
    linear(*values)
    first = read_rates(rates_file())
    assert first is not None
    cached_rates.cache_clear()  # as another process
    assert cached_rates() == first
    other = FAST if not first.onednn_pays else SLOW
    rates_file().write_text(json.dumps(vars(other)))
    cached_rates.cache_clear()
    assert automatic_choice() == ("onednn" if other is FAST else "torch")


def test_small_products_measure_nothing(cache: Path) -> None:
    linear(torch.ones(2, 3), torch.ones(4, 3))
    assert not list(cache.iterdir())


def test_of_processes_that_measure_at_once_the_first_decides() -> None:
    assert store_rates(rates_file(), FAST) == FAST
    assert store_rates(rates_file(), SLOW) == FAST
    assert [path.name for path in rates_file().parent.iterdir()] == [rates_file().name]


def test_without_links_the_first_decides_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        target.write_text(json.dumps(vars(FAST)))  # another process is first by a moment
        raise PermissionError

    def first(source: Path, target: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", None)  # it would replace the other's file
    monkeypatch.setattr(os, "link", first)
    assert store_rates(rates_file(), ALIKE) == ALIKE
    rates_file().unlink()
    monkeypatch.setattr(os, "link", no_links)
    assert store_rates(rates_file(), SLOW) == FAST


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"onednn": 1}', '{"onednn": -1, "torch": 2}', '{"onednn": null}']
)
def test_a_broken_file_is_replaced(text: str) -> None:
    rates_file().parent.mkdir(parents=True)
    rates_file().write_text(text)
    assert read_rates(rates_file()) is None
    assert store_rates(rates_file(), SLOW) == SLOW


@pytest.mark.parametrize("other", ["torch", "processor"])
def test_another_pytorch_or_processor_has_rates_of_its_own(
    other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rates_file()
    if other == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99")
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other units")
    assert rates_file() != before


def test_where_nothing_can_be_kept_pytorch_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached_rates() is None
    assert automatic_choice() == "torch"
    assert "oneDNN: how fast it is cannot be kept" in describe_environment()


def test_without_a_cache_folder_pytorch_serves_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "~unknown_user")
    monkeypatch.chdir(tmp_path)
    assert cached_rates() is None
    assert automatic_choice() == "torch"
    assert not list(tmp_path.iterdir())


def test_measuring_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        rates = measured_rates()
    assert counter.get_total_flops() == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert rates.onednn > 0
    assert rates.torch > 0


@pytest.mark.parametrize(
    ("rates", "description"),
    [(FAST, "onednn: oneDNN 200 GFLOP/s, PyTorch 100"), (SLOW, "torch; oneDNN: it is not worth it here")],
)
def test_info_says_what_auto_takes(rates: Rates, description: str) -> None:
    store_rates(rates_file(), rates)
    assert f"auto takes     {description}" in describe_environment()
