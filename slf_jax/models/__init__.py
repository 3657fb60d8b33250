"""The networks: conditioning (evaluated once per sample) and the U-Net (once per noise level)."""
