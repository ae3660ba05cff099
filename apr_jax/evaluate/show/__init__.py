"""Shows threads and results: as a text tree, live in a terminal, as pages, pictures and plots."""

from apr_jax.evaluate.show.tree import tree

__all__ = ["tree"]
