"""Adaptive parallel reasoning in JAX: language models that fork and join their own reasoning inside one compiled program."""
