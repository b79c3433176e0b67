"""How a scan is cut into programs: channels, batch elements and, where those are few, segments of time."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from map_core.ops.scan.triton.arguments import Tile

# Of the cuts timed on an H100 (docs/performance.md) the fastest or next to it, at half of the other's memory; longer
# chunks take three times as long to compile.
CHUNK = 4  # steps whose states backward holds in registers; memory holds one state for each chunk
# A program is one warp, so that small batches still make many; its states take this number of registers of each thread.
# Compiled for compute capability 9.0, state 16, nothing is spilled; backward takes all registers a thread can have.
FORWARD_VALUES = 16
BACKWARD_VALUES = 16
MAX_BLOCK = 32
# Time is cut when a processor of the GPU would get fewer programs than this, into segments of at least MIN_SPAN steps.
# A cut scans everything twice, so fewer than three segments would gain nothing. On an H100 a step of three programs for
# a processor took a quarter of the time of 46, so about 12 fill it; that a cut pays up to here is estimated, not timed.
PROGRAMS_PER_PROCESSOR = 16
MIN_SPAN = 64
MIN_SEGMENTS = 3


def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; the interpreter is one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def segments_of(length: int, programs: int, processors: int) -> int:
    """Number of segments of time, such that ``programs`` programs for each fill the processors; 1 leaves time whole."""
    target = PROGRAMS_PER_PROCESSOR * processors // max(programs, 1)
    segments = min(target, length // MIN_SPAN)
    return segments if segments >= MIN_SEGMENTS else 1


@dataclass(frozen=True)
class Grid:
    """How a scan is cut into programs: blocks of channels, and ``cut`` segments of time (at most)."""

    batch: int
    length: int
    channels: int
    state: int
    values: int
    cut: int = 1

    @property
    def chunk(self) -> int:
        """Steps of a chunk."""
        return CHUNK

    @property
    def padded_state(self) -> int:
        return 1 << (self.state - 1).bit_length()

    @property
    def block(self) -> int:
        """Channels of a program of one warp that holds ``values`` states per thread."""
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
        """Launch the programs of one or two directions, which the first two arguments describe (None for no second)."""
        kernel[(self.programs, directions, self.segments)](
            *arguments,
            batches=self.batch,
            length=self.length,
            channels=self.channels,
            blocks=self.blocks,
            chunks=self.chunks,
            span=self.span,
            tile=Tile(self.state, self.padded_state, self.block),
            BOTH=arguments[1] is not None,
            num_warps=1,
            **constants,
        )


def grid_of(tensors: dict[str, Tensor], values: int, directions: int) -> Grid:
    """Cut the scans of ``directions`` directions, each like ``tensors``; a thread holds ``values`` states."""
    batch, length, channels = tensors["u"].shape
    whole = Grid(batch, length, channels, tensors["A"].shape[1], values)
    processors = processors_of(tensors["u"].device)
    return replace(whole, cut=segments_of(length, whole.programs * directions, processors))
