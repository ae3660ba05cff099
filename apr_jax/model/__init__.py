"""The transformer, its configuration, attention under visibility, and weights in and out."""
