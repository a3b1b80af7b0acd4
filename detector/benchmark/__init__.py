"""The speed of the detector, alone and compared with the published pipeline."""
