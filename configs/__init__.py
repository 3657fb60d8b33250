"""What to run. Each file is a program with `get_config()`; its docstring says how to run it and what it reached."""
