"""Native CPU kernels behind ``torch.library`` operators, which autograd, compile and export understand."""
