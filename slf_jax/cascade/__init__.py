"""The two stages of the cascade: their settings, images, losses and samplers."""
