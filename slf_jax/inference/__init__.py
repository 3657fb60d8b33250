"""Inference: loads a trained system, samples from it and writes faces with metadata."""
