"""What checks annotations while tests run, see `conftest.py`.

Arguments and results of functions must be as annotated. Of arguments that are tables (`pytree` dataclasses, such as `Book`) every
array must be as its field is annotated, behind leading axes that are the same for all fields of a table: none for one problem, [P]
for those of a step, or [B] where rows were picked for tiles. A row of the thread table, as scalars, lacks its axis M.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import beartype
import jax
import jaxtyping
import numpy as np

COLLECTIONS = ("State", "Outbox")  # of tables that have nothing in common


def checked(function: Callable) -> Callable:
    """The function, which refuses arguments and results that are not as annotated.

    Constructors of dataclasses are let be: jax rebuilds pytrees with anything for leaves (shardings, axes, nothing at all).
    """
    if function.__name__ == "__init__":
        return function
    strict = beartype.beartype(function)
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args, **kwargs):
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if fault := wrong(value):
                raise TypeError(f"{function.__qualname__}: {name}: {fault}")
        return strict(*args, **kwargs)

    return call


def wrong(table: Any) -> str:
    """What is not as annotated in a table; empty if all is, or if it is none."""
    if type(table).__name__ in COLLECTIONS:
        faults = (wrong(getattr(table, field.name)) for field in dataclasses.fields(table))
        return next(filter(None, faults), "")
    leads, sizes = {}, {}
    for name, hint, value in arrays(table):
        dims = hint.dim_str.split()
        known = isinstance(value.dtype, np.dtype)  # not of random keys
        if known and value.dtype.name not in hint.dtypes and hint.dtypes != "any":
            return f"{name} is {value.dtype}, not {hint.__name__}"
        if not all(dim.isidentifier() or dim.isdecimal() for dim in dims):
            continue  # `...`
        if dims[:1] == ["M"] and len(value.shape) < len(dims):
            dims = dims[1:]
        if len(value.shape) < len(dims):
            return f"{name} is {value.shape}, not [{hint.dim_str}]"
        front, back = value.shape[: len(value.shape) - len(dims)], value.shape[len(value.shape) - len(dims) :]
        lead = leads.setdefault(name.rpartition(".")[0], front)
        if front != lead:
            return f"{name} is {value.shape}, [{hint.dim_str}] behind {front}; the others have {lead} in front"
        for dim, size in zip(dims, back, strict=True):
            if sizes.setdefault(dim, int(dim) if dim.isdecimal() else size) != size:
                return f"{name} is {value.shape}, [{hint.dim_str}], and {dim} is {sizes[dim]}"
    return ""


def arrays(table: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and value of the arrays in a table and in the tables in it."""
    if not dataclasses.is_dataclass(table) or isinstance(table, type):
        return
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if isinstance(field.type, type) and issubclass(field.type, jaxtyping.AbstractArray):
            if isinstance(value, jax.Array | np.ndarray):
                yield field.name, field.type, value
        elif dataclasses.is_dataclass(field.type):  # not the trees that a protocol keeps
            yield from ((f"{field.name}.{name}", hint, inner) for name, hint, inner in arrays(value))
