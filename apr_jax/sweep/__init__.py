"""Sweeps: many runs of one program, each a process in a folder of its own, and the results folder as the only state."""
