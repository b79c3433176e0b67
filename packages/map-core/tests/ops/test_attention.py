"""Every implementation of attention computes what the definition says, under every mask."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from map_core.errors import UserError
from map_core.ops import attention, attention_backends
from map_core.ops.attention import flex
from map_core.ops.attention.flex import flex_attention, make_block_mask
from map_core.ops.attention.interface import REGISTRY
from map_core.ops.attention.native import native_attention
from map_core.ops.registry import Request
from map_core.regions import region_attention_mask

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
FAST = [s.name for s in attention_backends() if s.available and s.name in ("native", "torch")]
LENGTH = 300  # two whole blocks of FlexAttention and a part of one
Tool = Callable[..., Any]


def heads(
    queries: int, keys: int, width: int, *, batch: int = 2, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Queries, keys and values of three heads, laid out as by a projection: the heads' axis after the tokens'."""
    generator = torch.Generator().manual_seed(queries + keys + width)
    parts = {"q": queries, "k": keys, "v": keys}
    return {
        name: torch.randn(batch, length, 3, width, generator=generator).to(dtype).transpose(1, 2)
        for name, length in parts.items()
    }


def defined(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The definition in double precision."""
    return attention(q.double(), k.double(), v.double(), mask, "reference").to(q.dtype)


def mask_of(kind: str, queries: int, keys: int, batch: int = 2) -> Tensor | None:
    generator = torch.Generator().manual_seed(queries)
    random = torch.rand(batch, queries, keys, generator=generator)
    if kind == "causal":
        return torch.ones(1, queries, keys, dtype=torch.bool).tril(keys - queries)
    masks = {"none": None, "shared": random[:1] > 0.5, "each": random > 0.9, "row": random[:, :1] > 0.3}
    mask = masks[kind]
    if mask is not None:
        mask[..., 0] = True  # every query sees a key
    return mask


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("kind", ["none", "shared", "each", "row", "causal"])
@pytest.mark.parametrize(
    ("queries", "keys", "width"),
    [(1, 2, 1), (6, 16, 16), (7, 300, 12), (98, 98, 16), (140, 129, 33), (50, 140, 64), (13, 256, 8)],
)
def test_outputs_and_gradients_equal_the_definition(
    queries: int,
    keys: int,
    width: int,
    kind: str,
    backend: str,
    output_and_gradients: Tool,
    assert_same: Tool,
) -> None:
    if kind == "causal" and keys < queries:
        keys = queries
    values, mask = heads(queries, keys, width), mask_of(kind, queries, keys)
    expected = output_and_gradients(partial(defined, mask=mask), values)
    assert_same(output_and_gradients(partial(attention, mask=mask, backend=backend), values), expected, 5e-6)


def test_the_definition_is_pytorchs() -> None:
    values = heads(20, 30, 16)
    for kind in ("none", "each", "row"):
        mask = mask_of(kind, 20, 30)
        expected = F.scaled_dot_product_attention(
            **dict(zip(("query", "key", "value"), values.values(), strict=True)),
            attn_mask=None if mask is None else mask.unsqueeze(1),
        )
        torch.testing.assert_close(attention(**values, mask=mask, backend="reference"), expected)


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_nothing_comes_through_a_mask(kind: str, backend: str) -> None:
    region = torch.arange(70).div(9, rounding_mode="floor")[None]
    mask = region_attention_mask(region, kind)
    values = {name: x.requires_grad_() for name, x in heads(70, 70, 16, batch=1).items()}
    y = attention(**values, mask=mask, backend=backend)
    for query in (0, 8, 9, 69):
        grads = torch.autograd.grad(y[:, :, query].sum(), (values["k"], values["v"]), retain_graph=True)
        hidden = ~mask[0, query]
        for grad in grads:
            assert torch.count_nonzero(grad[:, :, hidden]) == 0
        assert (grads[1][:, :, ~hidden] != 0).all()


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_a_query_that_sees_no_key_gets_zeros_and_gives_none(backend: str) -> None:
    values = {name: x.requires_grad_() for name, x in heads(20, 40, 16).items()}
    mask = torch.ones(1, 20, 40, dtype=torch.bool)
    mask[:, 3], mask[:, 12:18] = False, False  # one among others, and a whole block of queries
    y = attention(**values, mask=mask, backend=backend)
    assert torch.count_nonzero(y[:, :, [3, *range(12, 18)]]) == 0
    if backend == "native":
        grads = torch.autograd.grad(y.sum(), tuple(values.values()))
        assert torch.count_nonzero(grads[0][:, :, [3, *range(12, 18)]]) == 0
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("backend", FAST)
def test_scores_far_apart_neither_overflow_nor_vanish(
    backend: str, output_and_gradients: Tool, assert_same: Tool
) -> None:
    values = heads(30, 50, 16)
    values["q"] = values["q"] * 100
    expected = output_and_gradients(defined, values)
    assert_same(output_and_gradients(partial(attention, backend=backend), values), expected, 1e-4)


@pytest.mark.parametrize("backend", FAST)
def test_bfloat16_is_computed_in_float32(backend: str, output_and_gradients: Tool, assert_same: Tool) -> None:
    values = heads(40, 40, 16, dtype=torch.bfloat16)
    wide = {name: x.float() for name, x in values.items()}
    actual = output_and_gradients(partial(attention, backend=backend), values)
    assert all(x.dtype == torch.bfloat16 for x in actual.values())
    expected = output_and_gradients(partial(attention, backend="reference"), wide)
    assert_same({name: x.float() for name, x in actual.items()}, expected, 2e-2)


@pytest.mark.parametrize("backend", FAST)
def test_other_strides_and_empty_batches(backend: str, output_and_gradients: Tool, assert_same: Tool) -> None:
    values = heads(25, 25, 16)
    dense = {name: x.contiguous() for name, x in values.items()}
    transposed = {name: x.transpose(2, 3).contiguous().transpose(2, 3) for name, x in values.items()}
    mask = torch.ones(1, 25, 50, dtype=torch.bool)[..., ::2].tril()
    run = partial(attention, mask=mask, backend=backend)
    expected = output_and_gradients(run, values)
    for other in (dense, transposed):
        assert_same(output_and_gradients(run, other), expected, 1e-6)
    empty = attention(**{name: x[:0] for name, x in values.items()}, backend=backend)
    assert empty.shape == (0, 3, 25, 16)


def test_transformations_of_pytorch_see_its_own_operator() -> None:
    q, k, v = heads(10, 10, 16).values()
    traced = torch.jit.trace(attention, (q, k, v))
    torch.testing.assert_close(traced(k, q, v), attention(k, q, v))


@pytest.mark.parametrize("backend", ["auto", *FAST, "reference"])
@pytest.mark.parametrize("kind", ["none", "shared", "each", "row"])
def test_transformations_of_torch_func_see_the_definition(
    kind: str, backend: str, assert_transformed: Tool
) -> None:
    q, k, v = heads(5, 7, 8, dtype=torch.float64).values()
    mask = mask_of(kind, 5, 7)
    definition = partial(attention, k=k, v=v, mask=mask, backend="reference")
    run = partial(attention, k=k, v=v, mask=mask, backend=backend)
    assert_transformed(run, definition, q)
    mapped = torch.func.vmap(attention)(*(x.unsqueeze(1) for x in (q, k, v))).squeeze(1)
    torch.testing.assert_close(mapped, attention(q, k, v))


def test_transformations_of_torch_func_compute_in_float32_at_least() -> None:
    q, k, v = (x.bfloat16().unsqueeze(1) for x in heads(5, 7, 8).values())
    mapped = torch.func.vmap(attention)(q, k, v)
    exact = attention(*(x.squeeze(1).double() for x in (q, k, v))).bfloat16()
    torch.testing.assert_close(mapped.squeeze(1), exact, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["none", "each"])
def test_gradients_of_gradients_of_torch_func(kind: str, backend: str) -> None:
    q, k, v = heads(5, 7, 8).values()
    attend = partial(attention, k=k, v=v, mask=mask_of(kind, 5, 7))

    def slope(q: Tensor) -> Tensor:
        return torch.func.grad(lambda q: attend(q, backend=backend).square().sum())(q)

    q.requires_grad_()
    (gradient,) = torch.autograd.grad(attend(q, backend="reference").square().sum(), q, create_graph=True)
    (expected,) = torch.autograd.grad(gradient.square().sum(), q)
    torch.testing.assert_close(torch.func.grad(lambda q: slope(q).square().sum())(q.detach()), expected)
    _, forward_over_reverse = torch.func.jvp(slope, (q.detach(),), (gradient.detach(),))
    torch.testing.assert_close(forward_over_reverse, expected / 2)  # the Hessian is symmetric


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": (1, 2, 5, 8)}, r"keys and values must be \(3, 5, 2, 8\); got \(1, 5, 2, 8\), \(3, 5, 2, 8\)"),
        ({"v": (3, 2, 5, 4)}, r"keys and values must be .*\(3, 5, 2, 4\)"),
        ({"v": (3, 2, 4, 8)}, r"keys and values must be .*\(3, 4, 2, 8\)"),
        ({"mask": torch.zeros(3, 4, 5)}, r"the mask must be of bool, \(3, 4, 5\) .*float32"),
        ({"mask": torch.ones(3, 4, 6, dtype=torch.bool)}, r"the mask must be .*\(3, 4, 6\)"),
        ({"mask": torch.ones(2, 4, 5, dtype=torch.bool)}, r"the mask must be .*\(2, 4, 5\)"),
        ({"mask": torch.ones(1, 1, 5, 5, dtype=torch.bool)}, r"the mask must be .*\(1, 1, 5, 5\)"),
    ],
)
def test_the_kernel_reads_no_memory_that_is_not_there(changes: dict[str, Any], message: str) -> None:
    """As in a traced model, where no shape is checked before the call."""
    values: dict[str, Any] = {"q": (3, 2, 4, 8), "k": (3, 2, 5, 8), "v": (3, 2, 5, 8), "mask": None} | changes
    q, k, v = (torch.randn(values[name]) for name in "qkv")
    with pytest.raises(ValueError, match=message):
        native_attention(q, k, v, values["mask"])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", ["auto", *FAST, "reference"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": (2, 4, 8)}, r"q has shape \(2, 4, 8\); it must have 4 axes \(batch, heads, tokens, width\)"),
        ({"k": (1, 2, 5, 8)}, r"k has shape \(1, 2, 5, 8\); it must have \(3, 2, 5, 8\), the batch, heads"),
        ({"v": (3, 2, 4, 8)}, r"v has shape \(3, 2, 4, 8\); it must have \(3, 2, 5, 8\), .* the tokens of k"),
        ({"v": (3, 2, 5, 4)}, r"v has shape \(3, 2, 5, 4\); it must have \(3, 2, 5, 8\)"),
        ({"mask": torch.zeros(3, 4, 5)}, r"mask has dtype torch.float32; it must be torch.bool, True where"),
        (
            {"mask": torch.ones(4, 5).bool()},
            r"mask has shape \(4, 5\); it must have \(3, 4, 5\), or 1 in place",
        ),
        ({"mask": torch.ones(2, 4, 5).bool()}, r"mask has shape \(2, 4, 5\); it must have \(3, 4, 5\)"),
        ({"mask": torch.ones(1, 1, 4, 5).bool()}, r"mask has shape \(1, 1, 4, 5\); it must have \(3, 4, 5\)"),
        ({"mask": torch.ones(1, 1, 5, 5).bool()}, r"mask has shape \(1, 1, 5, 5\); it must have \(3, 4, 5\)"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, Any], message: str, backend: str) -> None:
    values: dict[str, Any] = {"q": (3, 2, 4, 8), "k": (3, 2, 5, 8), "v": (3, 2, 5, 8), "mask": None} | changes
    q, k, v = (torch.randn(values[name]) for name in "qkv")
    with pytest.raises(UserError, match="attention: " + message):
        attention(q, k, v, values["mask"], backend)


@pytest.mark.parametrize("backend", ["auto", *FAST, "reference"])
def test_autocast_leaves_the_dtype_of_the_queries(backend: str) -> None:
    values = heads(6, 9, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(**values, backend=backend)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, defined(**values), rtol=0, atol=2e-2)


def test_an_unknown_or_unfit_implementation_is_refused() -> None:
    values = heads(4, 4, 16)
    with pytest.raises(UserError, match="unknown backend='nativ'"):
        attention(**values, backend="nativ")
    with pytest.raises(UserError, match="backend='flex' cannot serve this call"):
        attention(**values, backend="flex")
    with pytest.raises(UserError, match="unknown backend='nativ'"):
        torch.func.grad(lambda q: attention(q, values["k"], values["v"], backend="nativ").sum())(values["q"])


@pytest.mark.parametrize(
    ("width", "dtype", "facts", "chosen"),
    [
        (16, torch.float32, (), "native"),
        (64, torch.bfloat16, (), "native"),
        (128, torch.bfloat16, (), "torch"),
        (32, torch.float32, (), "torch"),
        (32, torch.float16, (), "torch"),
        (64, torch.float32, (), "torch"),
        (64, torch.float32, ("masked",), "native"),
        (128, torch.float32, ("masked",), "torch"),
        (16, torch.float64, (), "torch"),
    ],
)
def test_what_serves_on_a_cpu(width: int, dtype: torch.dtype, facts: tuple[str, ...], chosen: str) -> None:
    expected = chosen if "native" in FAST else "torch"
    assert REGISTRY.choose("auto", "cpu", dtype, width, *facts) == expected


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({}, None),
        ({"dtype": torch.bfloat16}, None),
        ({"device": "cpu"}, "its kernels run on GPUs"),
        ({"dtype": torch.float64}, "not torch.float64"),
        ({"facts": ("masked",)}, "fewer than 1024 tokens"),
        ({"size": 12}, "head dimensions of 16 or more, not 12"),  # the decoder of the authors
        ({"facts": ("long",)}, "a row for each query"),
    ],
)
def test_where_flex_attention_serves(changes: dict[str, Any], refusal: str | None) -> None:
    call = {"device": "cuda", "dtype": torch.float32, "size": 64, "facts": ("masked", "long")}
    reason = flex.flex_unfit(Request(**call | changes))
    assert (reason is None) if refusal is None else (refusal in (reason or ""))


def test_the_choice_of_a_backend_depends_on_lengths_and_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[Any, ...]] = []
    monkeypatch.setattr(REGISTRY, "choose", lambda *request: requests.append(request) or "torch")
    with torch.no_grad():
        attention(**heads(3, 4, 16))
        attention(**heads(3, 4, 16), mask=mask_of("row", 3, 4))
        attention(**heads(3, 4, 16), mask=mask_of("each", 3, 4))
        attention(**heads(1024, 1024, 1, batch=1))
    assert [request[4:] for request in requests] == [(), (), ("masked",), ("long",)]


def recompile_limit() -> int:
    return int(torch._dynamo.config.recompile_limit)


def test_more_lengths_are_compiled_than_pytorch_allows_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any thread, and for these kernels alone."""
    limits: list[int] = []
    monkeypatch.setattr(
        flex, "_kernels", lambda: lambda q, k, v, block_mask: limits.append(recompile_limit()) or q
    )
    values, mask = heads(LENGTH, LENGTH, 16), regions_of("map", 1)
    with torch._dynamo.config.patch(recompile_limit=8):
        flex_attention(**values, mask=mask)
        assert recompile_limit() == 8
    with ThreadPoolExecutor(1) as threads:
        threads.submit(flex_attention, **values, mask=mask).result()
    assert limits == [flex.MAX_SHAPES] * 2


def regions_of(kind: str, batch: int, num_global: int = 3) -> Tensor:
    region = torch.arange(LENGTH).div(60, rounding_mode="floor").expand(batch, -1).clone()
    if batch > 1:
        region = torch.stack([row[torch.randperm(LENGTH)] for row in region])
    region[:, :num_global] = -1
    return region_attention_mask(region, kind)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_flex_attention_equals_the_dense_mask(kind: str, batch: int) -> None:
    values, mask = heads(LENGTH, LENGTH, 16), regions_of(kind, batch)
    with torch.no_grad():
        actual = flex_attention(**values, mask=mask, compiled=False)
        expected = attention(**values, mask=mask, backend="reference")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "computed"), [("mae", 9), ("map", 8), ("local_mae", 7), ("ar", 6)])
def test_blocks_that_are_hidden_whole_are_left_out(kind: str, computed: int) -> None:
    """Regions of 60, blocks of 128: by the definition, a block counts where any of its entries is True."""
    mask = regions_of(kind, 1, num_global=0)
    padded = F.pad(mask, (0, 84, 0, 84)).reshape(3, 128, 3, 128)
    block_mask = make_block_mask(mask)
    blocks = block_mask.kv_num_blocks.sum() + block_mask.full_kv_num_blocks.sum()
    assert blocks == padded.any(3).any(1).sum()
    assert blocks <= computed


def test_layers_that_share_a_mask_share_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Tensor] = []
    monkeypatch.setattr(flex, "make_block_mask", lambda mask: converted.append(mask) or make_block_mask(mask))
    masks = [regions_of("map", 1), regions_of("ar", 1)]
    values = heads(LENGTH, LENGTH, 16, batch=1)
    with torch.no_grad():
        results = [
            flex_attention(**values, mask=mask, compiled=False)
            for mask in (masks[0], masks[0], masks[1], masks[0])
        ]
    assert len(converted) == 3
    assert torch.equal(results[0], results[3])
    assert not torch.equal(results[0], results[2])


def test_a_mask_changed_in_place_is_sorted_again() -> None:
    mask, values = regions_of("map", 1), heads(LENGTH, LENGTH, 16, batch=1)
    with torch.no_grad():
        flex_attention(**values, mask=mask, compiled=False)
        mask.fill_(True)
        actual = flex_attention(**values, mask=mask, compiled=False)
        expected = attention(**values, mask=mask, backend="reference")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
