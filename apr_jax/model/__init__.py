"""The transformer, its configuration, attention under a visibility mask, and weight files."""
