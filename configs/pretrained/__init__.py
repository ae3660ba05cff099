"""What one writes to decode checkpoints that were released with published systems; the user gives the folder."""
