"""The library of native CPU kernels: loading it, and the structures that it reads."""
