"""The cascade of two stages: settings, images, losses and samplers."""
