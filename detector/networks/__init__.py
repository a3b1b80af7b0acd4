"""The networks: the U-Net, the noise feature, the ResNet, and conversion of published weights."""
