"""The science: pictures in, scores and Diffusion Noise Features out."""
