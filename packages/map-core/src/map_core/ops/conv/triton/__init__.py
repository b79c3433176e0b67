"""The depthwise causal convolution in Triton."""
