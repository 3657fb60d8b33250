"""Configurations: each file defines `get_config()`; its docstring says how to run it and what results it reached."""
