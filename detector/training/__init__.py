"""Training of the U-Net and of the classifier."""
