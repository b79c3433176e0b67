"""Arguments that do not fit and backends that cannot serve are refused, with names, values and the rule."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from map_core.errors import UserError
from map_core.ops import ScanInputs, bidirectional_selective_scan, scan_backends, selective_scan
from map_core.ops.registry import Implementation, Registry
from map_core.ops.scan.interface import REGISTRY

Tool = Callable[..., Any]


@pytest.fixture
def _fresh_registry() -> Iterator[None]:
    REGISTRY.forget()
    yield
    REGISTRY.forget()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "delta",
            (2, 9, 20),
            r"delta's axis 1 \(length\) has size 9 but u's axis 1 has 8; they must be equal",
        ),
        ("delta", (3, 8, 20), r"delta's axis 0 \(batch\) has size 3 but u's axis 0 has 2"),
        ("A", (19, 5), r"A's axis 0 \(channels\) has size 19 but u's axis 2 has 20"),
        ("B", (2, 8, 6), r"B's axis 2 \(state\) has size 6 but A's axis 1 has 5"),
        ("C", (2, 7, 5), r"C's axis 1 \(length\) has size 7 but u's axis 1 has 8"),
        ("D", (21,), r"D's axis 0 \(channels\) has size 21 but u's axis 2 has 20"),
        ("z", (2, 8, 10), r"z's axis 2 \(channels\) has size 10 but u's axis 2 has 20"),
        ("delta_bias", (1,), r"delta_bias's axis 0 \(channels\) has size 1 but u's axis 2 has 20"),
        ("u", (8, 20), r"u has shape \(8, 20\); it must have 3 axes \(batch, length, channels\)"),
        ("A", (20,), r"A has shape \(20,\); it must have 2 axes \(channels, state\)"),
    ],
)
def test_shapes_that_do_not_agree(
    name: str, shape: tuple[int, ...], message: str, scan_arguments: Tool
) -> None:
    arguments = scan_arguments(8) | {name: torch.ones(shape)}
    with pytest.raises(UserError, match="selective_scan: " + message):
        selective_scan(**arguments)


def test_integer_arguments(scan_arguments: Tool) -> None:
    arguments = scan_arguments(8)
    arguments["u"] = arguments["u"].long()
    with pytest.raises(
        UserError, match=r"u has dtype torch.int64; it must be real floating point, cast it first"
    ):
        selective_scan(**arguments)


def test_mixed_devices(scan_arguments: Tool) -> None:
    arguments = scan_arguments(8)
    arguments["B"] = arguments["B"].to("meta")
    with pytest.raises(UserError, match=r"B is on meta but u is on cpu; move them to one device"):
        selective_scan(**arguments)


def test_directions_that_differ(scan_arguments: Tool) -> None:
    one, other = scan_arguments(8), scan_arguments(9)
    for arguments in (one, other):
        del arguments["z"]
    with pytest.raises(UserError, match=r"forward.u has shape \(2, 8, 20\) but backward.u has \(2, 9, 20\)"):
        bidirectional_selective_scan(ScanInputs(**one), ScanInputs(**other), None)
    other["A"] = other["A"][:3]
    with pytest.raises(UserError, match=r"\(backward\): A's axis 0 \(channels\) has size 3"):
        bidirectional_selective_scan(ScanInputs(**one), ScanInputs(**other), None)


def test_an_unknown_backend_gets_near_matches(scan_arguments: Tool) -> None:
    with pytest.raises(UserError, match=r"unknown backend='natvie'; did you mean native\?"):
        selective_scan(**scan_arguments(4), backend="natvie")


@pytest.mark.usefixtures("_fresh_registry")
def test_a_named_backend_is_refused_with_the_reason_and_never_replaced(scan_arguments: Tool) -> None:
    assert {s.name: s for s in scan_backends()}["mamba_ssm"].available is False
    with pytest.raises(
        UserError, match=r"backend='mamba_ssm' cannot serve this call: mamba_ssm is not installed; "
    ):
        selective_scan(**scan_arguments(4), backend="mamba_ssm")
    with pytest.raises(
        UserError, match=r"backend='native' cannot serve this call: .*not torch.float64|not built"
    ):
        selective_scan(**scan_arguments(4, dtype=torch.float64), backend="native")


def test_float64_is_served_automatically(scan_arguments: Tool) -> None:
    assert selective_scan(**scan_arguments(4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.usefixtures("_fresh_registry")
def test_auto_says_once_what_it_picked(scan_arguments: Tool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="map_core.ops.registry"):
        selective_scan(**scan_arguments(4))
        selective_scan(**scan_arguments(4))
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("selective_scan on cpu: backend='auto' picked")


def test_auto_takes_the_first_that_can_serve_and_never_the_definition() -> None:
    def run(*_: object) -> torch.Tensor:
        return torch.zeros(())

    registry = Registry(
        "op",
        (
            Implementation("absent", run, missing=lambda: "not installed"),
            Implementation("definition", run, automatic=False),
            Implementation("narrow", run, unfit=lambda r: "too big" if r.size > 4 else None),
            Implementation("wide", run),
        ),
    )
    assert registry.choose("auto", "cpu", torch.float32, 4) == "narrow"
    assert registry.choose("auto", "cpu", torch.float32, 5) == "wide"
    assert registry.choose("definition", "cpu", torch.float32, 5) == "definition"
    with pytest.raises(
        UserError, match="op: backend='narrow' cannot serve this call: too big; backend='auto'"
    ):
        registry.choose("narrow", "cpu", torch.float32, 5)
    assert next((s.name, s.available, s.reason) for s in registry.statuses()) == (
        "absent",
        False,
        "not installed",
    )


@pytest.mark.usefixtures("_fresh_registry")
def test_statuses_name_every_implementation_with_a_reason() -> None:
    statuses = {status.name: status for status in scan_backends()}
    assert list(statuses) == ["mamba_ssm", "native", "triton", "torch", "reference"]
    assert str(statuses["mamba_ssm"]) == "mamba_ssm is not installed"
    assert statuses["torch"].available
    assert statuses["torch"].reason == ""
