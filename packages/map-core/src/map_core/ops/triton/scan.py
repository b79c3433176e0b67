"""The Triton scan as an operator, for one direction or the average of two."""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from map_core.ops.registry import Request, optional_import
from map_core.ops.selective_scan.inputs import ScanInputs
from map_core.ops.selective_scan.operator import FIELDS, by_direction, scan_operator
from map_core.ops.triton.arguments import Direction, Gate, Gradients, Rows, Tile

MAX_STATE = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHUNK = 8  # steps whose states backward holds in registers; one state in so many is kept in memory
# Never timed. A program is one warp, so that small batches still make many; its states take so many registers of
# each thread. Compiled for compute capability 8.0 and 9.0, state 16, forward spills nothing, backward 16 bytes.
FORWARD_VALUES = 16
BACKWARD_VALUES = 8
MAX_BLOCK = 32
# Time is cut when a processor of the GPU would get fewer programs than this, into segments of at least so many steps.
# A cut scans everything twice, so fewer than three segments would gain nothing.
PROGRAMS_A_PROCESSOR = 8
MIN_SPAN = 64
MIN_SEGMENTS = 3


def _interpreting() -> bool:
    """Whether Triton, once imported, runs kernels on the CPU; its own switch for tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing() -> str | None:
    """Why Triton kernels cannot run on this installation, or None."""
    if not (_interpreting() or torch.cuda.is_available()):
        return "PyTorch sees no CUDA device"
    return optional_import(_kernels)


def triton_unfit(request: Request) -> str | None:
    """Why the Triton kernels cannot serve this request, or None."""
    if request.device != "cuda" and not (_interpreting() and request.named):
        return f"it runs on CUDA tensors only, these are on {request.device}"
    if request.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {request.dtype}"
    if not 1 <= request.size <= MAX_STATE:
        return f"it holds 1 to {MAX_STATE} states a channel, A has {request.size}"
    return None


def _kernels() -> ModuleType:
    return importlib.import_module("map_core.ops.triton.kernels")


def _constexpr(value: Any) -> Any:
    """Mark a value that Triton is to know when it compiles."""
    return importlib.import_module("triton.language").constexpr(value)


def _processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; the interpreter is one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def segments_of(length: int, programs: int, processors: int) -> int:
    """Into how many segments to cut time, so that ``programs`` times as many occupy the processors; 1: not at all."""
    wanted = PROGRAMS_A_PROCESSOR * processors // max(programs, 1)
    segments = min(wanted, length // MIN_SPAN)
    return segments if segments >= MIN_SEGMENTS else 1


@dataclass(frozen=True)
class _Grid:
    """How a scan is cut into programs: channels a program, blocks of them, and segments of time if ``cut``."""

    batch: int
    length: int
    channels: int
    state: int
    values: int
    cut: int = 1

    @property
    def padded_state(self) -> int:
        return 1 << (self.state - 1).bit_length()

    @property
    def block(self) -> int:
        """Channels of a program of one warp that holds ``values`` states a thread."""
        return max(1, min(MAX_BLOCK, 32 * self.values // self.padded_state))

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block)

    @property
    def span(self) -> int:
        """Steps of a segment, whole chunks; the last may be shorter."""
        return -(-self.length // (self.cut * CHUNK)) * CHUNK

    @property
    def segments(self) -> int:
        return -(-self.length // self.span)

    @property
    def chunks(self) -> int:
        return -(-self.length // CHUNK)

    @property
    def programs(self) -> int:
        return self.blocks * self.batch

    def launch(self, kernel: Any, directions: int, *arguments: Any, **constants: Any) -> None:
        kernel[(self.programs, directions, self.segments)](
            *arguments,
            batches=self.batch,
            length=self.length,
            channels=self.channels,
            blocks=self.blocks,
            chunks=self.chunks,
            span=self.span,
            tile=Tile(self.state, self.padded_state, self.block),
            num_warps=1,
            **constants,
        )


def _rows(x: Tensor) -> Rows:
    x = x if x.stride(-1) == 1 else x.contiguous()
    return Rows(x, x.stride(0), x.stride(1))


def _gate(z: Tensor | None, grad_out: Tensor | None, directions: int) -> Gate:
    return Gate(
        z=None if z is None else _rows(z),
        grad_out=None if grad_out is None else _rows(grad_out),
        scale=_constexpr(1.0 / directions),
    )


def _sums(device: torch.device, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


def _direction(
    tensors: dict[str, Tensor], softplus: bool, reverse: bool, grid: _Grid, keep: bool
) -> Direction:
    """Describe one direction; with ``keep`` the state before every chunk has a place to be kept."""
    device, state, cut = tensors["u"].device, (grid.state, grid.channels), grid.segments > 1
    return Direction(
        u=_rows(tensors["u"]),
        delta=_rows(tensors["delta"]),
        B=_rows(tensors["B"]),
        C=_rows(tensors["C"]),
        A=tensors["A"].t().contiguous(),
        D=tensors["D"].contiguous() if "D" in tensors else None,
        bias=tensors["bias"].contiguous() if "bias" in tensors else None,
        starts=_sums(device, grid.batch, grid.chunks, *state) if keep else None,
        ends=_sums(device, grid.batch, grid.segments, *state) if cut else None,
        totals=_sums(device, grid.batch, grid.segments, grid.channels) if cut else None,
        softplus=_constexpr(softplus),
        reverse=_constexpr(reverse),
    )


def _grid(tensors: dict[str, Tensor], values: int, directions: int) -> _Grid:
    batch, length, channels = tensors["u"].shape
    whole = _Grid(batch, length, channels, tensors["A"].shape[1], values)
    processors = _processors(tensors["u"].device)
    return replace(whole, cut=segments_of(length, whole.programs * directions, processors))


def _pair(items: list[Any]) -> tuple[Any, Any]:
    return items[0], (items[1] if len(items) == 2 else None)


def _summarize(directions: list[Direction], grads: list[Gradients], gate: Gate | None, grid: _Grid) -> None:
    """Find what each segment makes of nothing: of the scans, or given gradients of the way back."""
    if grid.segments > 1:
        kernel = _kernels().summary_kernel
        grid.launch(kernel, len(directions), *_pair(directions), *_pair(grads or [None]), gate)


def _scan(directions: list[Direction], gate: Gate, out: Tensor | None, grid: _Grid) -> None:
    """Run the forward kernel: the gated average to ``out``, or with a cotangent the gradient of z."""
    _summarize(directions, [], None, grid)
    meeting = None
    if len(directions) == 2 and out is not None:
        # y of one direction is read back in float32 when the other arrives; out itself will do if it is wide.
        meeting = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    written = [None if x is None else _rows(x) for x in (out, meeting)]
    grid.launch(_kernels().forward_kernel, 1, *_pair(directions), gate, *written, CHUNK=CHUNK)


def _forward(
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[bool],
    softplus: Sequence[bool],
    reverse: Sequence[bool],
) -> Tensor:
    """Average the scans whose inputs are listed in ``tensors``, in the order of ``FIELDS``."""
    named = by_direction(tensors, present)
    u = named[0]["u"]
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(u):
        grid = _grid(named[0], FORWARD_VALUES, 1)
        directions = [
            _direction(one, soft, back, grid, keep=False)
            for one, soft, back in zip(named, softplus, reverse, strict=True)
        ]
        _scan(directions, _gate(z, None, len(named)), out, grid)
    return out


def _backward(
    grad_out: Tensor,
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[bool],
    softplus: Sequence[bool],
    reverse: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of ``tensors``, then that of ``z`` if there is one."""
    inputs = [*tensors] if z is None else [*tensors, z]
    if grad_out.numel() == 0:
        return [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
    named = by_direction(tensors, present)
    with torch.cuda.device_of(grad_out):
        grid = _grid(named[0], BACKWARD_VALUES, len(named))
        directions = [
            _direction(one, soft, back, grid, keep=True)
            for one, soft, back in zip(named, softplus, reverse, strict=True)
        ]
        grad_z = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
        gate = _gate(z, grad_out, len(named))
        # Without z there is no gradient to write: the forward kernel then keeps the chunks' states alone.
        _scan(
            directions,
            gate if z is not None else _gate(None, None, len(named)),
            grad_z,
            replace(grid, values=FORWARD_VALUES),
        )

        written = [_gradients(one, grid) for one in named]
        _summarize(directions, written, gate, grid)
        grid.launch(
            _kernels().backward_kernel, len(named), *_pair(directions), *_pair(written), gate, CHUNK=CHUNK
        )
        grads = [grad for pair in zip(named, written, strict=True) for grad in _sum(*pair)]
    return grads if grad_z is None else [*grads, grad_z]


def _gradients(tensors: dict[str, Tensor], grid: _Grid) -> Gradients:
    """Allocate what one direction's programs write."""
    u, state, by_batch = tensors["u"], (grid.state, grid.channels), grid.segments * grid.batch
    by_step = (grid.blocks, grid.batch, grid.length, grid.state)
    vectors = {name: _sums(u.device, by_batch, grid.channels) for name in ("D", "bias") if name in tensors}
    return Gradients(
        u=_rows(torch.empty(u.shape, dtype=u.dtype, device=u.device)),
        delta=_rows(torch.empty(u.shape, dtype=tensors["delta"].dtype, device=u.device)),
        B=_sums(u.device, *by_step),
        C=_sums(u.device, *by_step),
        A=_sums(u.device, by_batch, *state),
        D=vectors.get("D"),
        bias=vectors.get("bias"),
        ends=_sums(u.device, grid.batch, grid.segments, *state) if grid.segments > 1 else None,
    )


def _sum(tensors: dict[str, Tensor], written: Gradients) -> list[Tensor]:
    """Return the gradients of one direction in the order of its tensors; sums in a fixed order."""
    whole = {name: getattr(written, name).sum(0) for name in tensors if name not in ("u", "delta")}
    whole |= {"u": written.u.data, "delta": written.delta.data, "A": whole["A"].t().contiguous()}
    return [whole[name].to(tensors[name].dtype) for name in FIELDS if name in tensors]


_apply = scan_operator("triton_selective_scan", ("cpu", "cuda"), _forward, _backward)


def triton_scan(inputs: ScanInputs, z: Tensor | None, reverse: bool) -> Tensor:
    """Compute what ``reference_scan`` defines with the Triton kernels."""
    return _apply([inputs], z, [reverse])


def triton_bidirectional_scan(forward: ScanInputs, backward: ScanInputs, z: Tensor | None) -> Tensor:
    """Compute the gated average of both directions at once, without flips."""
    if forward.A.shape[1] != backward.A.shape[1]:  # one launch has one state size
        return 0.5 * (triton_scan(forward, z, False) + triton_scan(backward, z, True))
    return _apply([forward, backward], z, [False, True])
