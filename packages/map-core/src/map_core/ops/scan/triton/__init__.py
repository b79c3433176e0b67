"""Kernels in Triton. Nothing here imports triton before the first scan that runs with it."""
