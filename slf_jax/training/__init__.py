"""Training: the loop, step, optimizer, input pipeline, checkpoints and logs."""
