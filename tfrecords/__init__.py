"""The contract between the PyTorch side (`extract`) and the JAX side (`slf_jax`): records on disk."""
