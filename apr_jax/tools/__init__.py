"""Tools that experiments and tests share; no other part of the package needs them."""
