"""The scan's three Triton kernels, for one direction or both at once, in the (b, l, d) layout.

A program owns one batch element and a block of channels; its states are a (state, channel) tile in registers,
and time is a loop. Both directions run in the same loop: after t steps one stands at position t, the other at
length - 1 - t. Until they meet each stores its y; from then on each reads the other's y, adds and gates.

Where there would be too few programs, time is cut into segments of positions, one program each. The state after a
segment is linear in the state that enters it, so the summary kernel first computes for each the state that it would
end in from zero and the sum of its step sizes; from these a program works out the state that enters its segment.

Backward runs the forward kernel again for the gradient of z and the state before every chunk; then one program for
each direction, batch element and channel block walks the chunks back, rebuilding the states inside one in
registers. Sums over programs go through partial buffers, so gradients are deterministic.

This module imports triton: it is loaded by the first call that needs it.
"""

from map_core.ops.scan.triton.backward import backward_kernel
from map_core.ops.scan.triton.forward import forward_kernel
from map_core.ops.scan.triton.segments import summary_kernel

__all__ = ["backward_kernel", "forward_kernel", "summary_kernel"]
