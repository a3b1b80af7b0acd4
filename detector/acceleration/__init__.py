"""Networks made fast for one device: kernels, captured graphs, precision."""
