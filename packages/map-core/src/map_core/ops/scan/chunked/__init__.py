"""The scan in plain PyTorch: one fused call per time step, states of a few steps at a time.

Forward saves the state at the start of every segment; backward rebuilds the states of one segment, then of
one chunk in it. Nothing of the full length has a state axis, so memory beside inputs and gradients grows with
the square root of the length.
"""
