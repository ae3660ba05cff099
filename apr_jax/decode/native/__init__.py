"""Attention over the pool, and products with packed weights, as small C++ kernels for CPUs.

XLA:CPU copies each slice of a buffer before a product and gathers element by element, so that reading the pool in blocks
costs two to three times what its products cost, and a problem pays for the fill of the fullest one. The kernel of attention
(`attention.cc`) reads slots where they lie. Weights are packed once (`product`) instead of in every product. Both are compiled
with the machine's own C++ compiler when they are first wanted, against the headers that jaxlib carries, and kept in the user's
cache folder. Where they cannot be had the engine uses `pool.blockwise_attention` and XLA's products, as it does on accelerators,
in f64, where a mesh cuts heads, and for a pool in int8.

Axes: X problems that are asked about, Y tokens of each, H heads, K kv heads, h head size, P problems of the pool, N slots.
"""

import ctypes
import dataclasses
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode.native import product
from apr_jax.decode.sizes import Sizes
from apr_jax.model.config import ModelConfig
from apr_jax.model.transformer import Model

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(FOLDER.glob("*.cc")))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Left out: what GCC 12 says of the intrinsics in its own headers, and of vectors that functions of one file hand to each other.
WARNINGS = ("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi")
WIDE = "-mprefer-vector-width=512"  # x86 only
LANES = 16  # the head size must be a multiple
TARGET = "apr_jax_attention"


class Unavailable(Exception):
    """The kernels cannot be had; the text says why."""


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apr_jax"


def build(compiler: str | None = None, without: Sequence[str] = ()) -> Path:
    """The compiled library: one for each source, compiler, set of instructions and jaxlib.

    Compiling says so in a line on stderr, followed by the compiler's warnings if there are any.

    Args:
        compiler: name or path; by default `$CXX`, else `g++`. GCC is needed: the kernels use its vector extensions.
        without: flags of instructions that are not to be used although the processor has them ("-mno-amx-bf16"). What is used
            then, `attention_path` and `product_path` tell.

    Raises:
        Unavailable: no compiler, or it fails.
    """
    name = compiler or os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"no C++ compiler {name!r} is found; install g++ or set CXX")
    # What the compiler predefines names its version and the instructions that it may use.
    defines = _call([path, "-march=native", *without, "-dM", "-E", "-x", "c++", os.devnull]).stdout
    flags = (*FLAGS, *((WIDE,) if "__x86_64__" in defines else ()))
    texts = [source.read_text() for source in sorted((*SOURCES, *FOLDER.glob("*.h")))]
    parts = (*texts, defines, jax.__version__, *flags)
    library = cache_folder() / f"native-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        print(
            f"apr_jax compiles its CPU kernels for this processor, once: 10 s to a minute ({library})", file=sys.stderr
        )
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            new = Path(folder) / library.name
            parts = (*flags, *without, *WARNINGS, "-isystem", jax.ffi.include_dir(), *map(str, SOURCES))
            sys.stderr.write(_call([path, *parts, "-o", str(new)]).stderr)
            new.replace(library)  # whole or not at all: other processes may be doing the same
    return library


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]} failed: {error.stderr.strip()[-500:]}") from error


@functools.cache
def load() -> ctypes.CDLL:
    """Compile the kernels if need be and tell XLA of them.

    Raises:
        Unavailable: see `build`; or the library cannot be loaded or written.
    """
    try:
        library = ctypes.CDLL(str(build()))
    except OSError as error:
        raise Unavailable(str(error)) from error
    for target in (TARGET, product.TARGET):
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    return library


def attention_path(dtype: Any, head_dim: int, library: ctypes.CDLL | None = None) -> str:
    """What attention is computed with, by the library loaded or a given one: AMX, AVX512-BF16, AVX-512, AVX2 or other."""
    function = (library or load()).apr_jax_attention_path
    function.argtypes, function.restype = (ctypes.c_bool, ctypes.c_int64), ctypes.c_char_p
    return function(jnp.dtype(dtype) == jnp.bfloat16, head_dim).decode()


def product_path(library: ctypes.CDLL | None = None) -> str:
    """What products with packed weights are computed with: AMX or AVX512-BF16; empty if they are left to XLA."""
    function = (library or load()).apr_jax_product_path
    function.restype = ctypes.c_char_p
    return function().decode()


def prepare(model: Model, dtype: Any) -> Model:
    """The model with its weights packed if it computes in bfloat16 and the processor multiplies that; `load` has been called."""
    packs = bool(product_path()) and jnp.dtype(dtype) == jnp.bfloat16
    return dataclasses.replace(model, params=product.pack(model.params)) if packs else model


def obstacle(config: ModelConfig, dtype: Any, sizes: Sizes, mesh: jax.sharding.Mesh) -> str | None:
    """Why the kernels do not serve such a program; None where they do."""
    platform, cut = mesh.devices.flat[0].platform, mesh.shape["model"]
    obstacles = (
        (platform != "cpu", f"they are for CPUs, not for {platform}"),
        (cut > 1, f"the mesh cuts heads {cut} ways over `model`"),
        (jnp.dtype(dtype).name not in ("bfloat16", "float32"), f"they compute in f32, not in {jnp.dtype(dtype).name}"),
        (sizes.int8_pool, "sizes.int8_pool = True: they read keys and values as they are computed"),
        (config.head_dim % LANES, f"head_dim = {config.head_dim} is no multiple of {LANES}"),
        (sizes.block % 8 or sizes.slots % 8, "sizes.attention_block or sizes.slots is no multiple of 8"),
    )
    return next((text for found, text in obstacles if found), None)


def choose(wanted: bool | None, config: ModelConfig, dtype: Any, sizes: Sizes, mesh: jax.sharding.Mesh) -> bool:
    """Whether a program uses the kernels, which then are loaded.

    Args:
        wanted: None where they serve and can be had, True or an error, False never.

    Raises:
        ValueError: they are wanted and do not serve, or cannot be had.
    """
    reason = "kernel=False" if wanted is False else obstacle(config, dtype, sizes, mesh)
    if reason is None:
        try:
            load()
        except Unavailable as error:
            reason = str(error)
            if wanted is None:
                warnings.warn(f"decoding goes on without its CPU kernels, slower: {reason}", stacklevel=3)
    if reason and wanted:
        raise ValueError(f"the CPU kernels cannot be used: {reason}")
    return reason is None


def attend(
    q: Float[Array, "X Y H h"],
    keys: Float[Array, "P N Kh"],
    values: Float[Array, "P N Kh"],
    problem: Int[Array, "X"],
    mask: Bool[Array, "X Y N"],
    fill: Int[Array, ""],
) -> Float[Array, "X Y H h"]:
    """Softmax attention under `mask`; a token that sees nothing gets 0. `load` must have been called.

    Args:
        q: not scaled; bfloat16 or float32, as the pool.
        problem: whose slots are read; P or more for nobody's.
        mask: what each token sees.
        fill: no slot from here on is seen; a multiple of 8.

    Raises:
        ValueError: q and the pool have different dtypes.
    """
    if not q.dtype == keys.dtype == values.dtype:
        raise ValueError(f"attention: q is {q.dtype}, the pool {keys.dtype} and {values.dtype}; all must be the same")
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(q.shape, q.dtype))
    return call(q, keys, values, problem.astype(jnp.int32), mask, fill.astype(jnp.int32))
