"""A trained system: loading it, sampling from it, and the metadata of what it makes."""
