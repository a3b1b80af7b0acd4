"""Fast inference on one device: CPU kernels, CUDA graphs, precision and memory."""
