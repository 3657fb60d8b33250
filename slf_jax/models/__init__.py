"""The networks: conditioning (once per sample) and the U-Net (once per noise level)."""
