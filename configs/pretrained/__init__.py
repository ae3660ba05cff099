"""Configurations for released checkpoints, a file each: what one writes to decode them as their systems do."""
