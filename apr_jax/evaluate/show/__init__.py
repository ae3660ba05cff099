"""Drawing threads and results: as a tree of text, live in a terminal, as pages, pictures and plots."""

from apr_jax.evaluate.show.tree import tree

__all__ = ["tree"]
