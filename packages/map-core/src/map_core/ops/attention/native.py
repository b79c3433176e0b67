"""The native attention as an operator."""

import torch
from torch import Tensor

from map_core.ops.attention.flops import backward_flops, forward_flops
from map_core.ops.native.calls import AttentionCall, address, common_dtype, heads, readable
from map_core.ops.native.library import native_unfit, run
from map_core.ops.operator import register_operator
from map_core.ops.registry import Request

# Head dimensions above which PyTorch's attention is faster. The second holds under a mask, whose hidden blocks the
# kernel skips, and in bfloat16, where PyTorch's is slow (docs/performance.md).
MAX_WIDTH, MAX_WIDTH_MASKED_OR_HALF = 16, 64


def native_attention_unfit(request: Request) -> str | None:
    """Why the native attention cannot, or by 'auto' should not, serve this request, or None."""
    reason = native_unfit(request)
    easy = "masked" in request.facts or request.dtype == torch.bfloat16
    max_width = MAX_WIDTH_MASKED_OR_HALF if easy else MAX_WIDTH
    if reason is None and not request.named and request.size > max_width:
        return f"PyTorch's is faster for head dimensions above {max_width}"
    return reason


def _call(
    dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[AttentionCall, list[Tensor | None]]:
    """Describe attention of a dtype, and return the tensors that must live until it has run.

    Raises:
        ValueError: shapes that do not match, or a mask that is not of bool: the kernel itself checks nothing.
    """
    batch, queries, count, width = q.shape
    keys = k.shape[1]
    if k.shape != (batch, keys, count, width) or v.shape != k.shape:
        raise ValueError(
            f"keys and values must be {(batch, keys, count, width)}; got {(*k.shape,)}, {(*v.shape,)}"
        )
    if mask is not None and not (
        mask.dtype == torch.bool
        and mask.ndim == 3
        and mask.shape[0] in (1, batch)
        and mask.shape[1] in (1, queries)
        and mask.shape[2] == keys
    ):
        raise ValueError(
            f"the mask must be of bool, {(batch, queries, keys)} or 1 for the first two; got {mask.dtype}, "
            f"{(*mask.shape,)}"
        )
    read_q, read_k, read_v = (readable(x, dtype) for x in (q, k, v))
    read_mask = None if mask is None else mask.contiguous()
    call = AttentionCall(
        batch=batch,
        heads=count,
        queries=queries,
        keys=keys,
        width=width,
        half=dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
        q=heads(read_q),
        k=heads(read_k),
        v=heads(read_v),
        mask=address(read_mask),
    )
    if mask is not None:
        call.mask_batch, call.mask_rows = mask.shape[:2]
    return call, [read_q, read_k, read_v, read_mask]


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attend from queries (b, q, h, d) to keys (b, l, h, d) where the mask (b or 1, q or 1, l) is True.

    Returns:
        The result (b, q, h, d), and for backward the logarithms to base 2 of softmax's denominators (b, h, q).
    """
    dtype = common_dtype(q, k, v)
    call, keep_alive = _call(dtype, q, k, v, mask)
    out = torch.empty(q.shape, dtype=dtype)
    log_sum = torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    call.out, call.log_sum = out.data_ptr(), log_sum.data_ptr()
    run("map_ops_attention_forward", call)
    del keep_alive
    return out.to(q.dtype), log_sum


def _backward(
    grad_out: Tensor, out: Tensor, log_sum: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> list[Tensor]:
    dtype = common_dtype(q, k, v, out, grad_out)
    call, keep_alive = _call(dtype, q, k, v, mask)
    read_grad, read_out = readable(grad_out, dtype), readable(out, dtype).contiguous()
    call.grad_out = heads(read_grad)
    call.out, call.log_sum = read_out.data_ptr(), log_sum.data_ptr()
    grads = [torch.empty(x.shape, dtype=dtype) for x in (q, k, v)]
    call.grad_q, call.grad_k, call.grad_v = (grad.data_ptr() for grad in grads)
    run("map_ops_attention_backward", call)
    del keep_alive
    return [grad.to(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True)]


def _fake(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, queries, count, _ = q.shape
    return torch.empty(q.shape, dtype=q.dtype), torch.empty((batch, count, queries), dtype=torch.float32)


_operator = register_operator(
    "attention",
    _forward,
    _backward,
    devices="cpu",
    fake=_fake,
    rereads_output=True,
    flops=forward_flops,
    backward_flops=backward_flops,
)


def native_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute what ``reference_attention`` defines with the native kernel."""
    # it takes and gives the tokens' axis before the heads': (b, h, q, d) -> (b, q, h, d) and back
    out, _ = _operator(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
    result: Tensor = out.transpose(1, 2)
    return result
