"""Native CPU kernels behind ``torch.library`` operators: autograd, compile and export see ordinary operators."""
