"""The networks: U-Net, the Diffusion Noise Feature, ResNet, and conversion of published weights."""
