"""Configurations for released checkpoints, a file each: what one writes to decode them as their systems do."""

"""What one writes to decode checkpoints that were released with published systems; the user gives the folder."""
__all__ = []
