"""Kernels in Triton. Nothing here imports triton until a scan is asked to run with it."""
