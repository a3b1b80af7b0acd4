"""What is killed, cut, frozen and fed with rubbish here must lose no verdict and double none."""
