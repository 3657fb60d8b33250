"""The extractors: each file turns the sound of clips into one constituent with one framework."""
