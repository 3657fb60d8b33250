"""Training: one loop, its step, its data, its checkpoints and what it logs."""
