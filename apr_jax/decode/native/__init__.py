"""Attention over the pool, and products with packed weights, as small C++ kernels for CPUs.

XLA:CPU copies each slice of a buffer before a product and gathers element by element. Reading the pool in blocks therefore costs
two to three times as much as the products, and a problem pays for the fill of the fullest problem. The attention kernel
(`attention.cc`) reads slots in place. Weights are packed once (`product`) instead of in every product. Both kernels are compiled
at their first use with the machine's own C++ compiler, against the headers in jaxlib, and kept in the user's cache folder. If they
are unavailable, the engine uses `pool.blockwise_attention` and XLA's products. The engine also does so on accelerators, in f64, if
a mesh cuts heads, for a pool in int8, and for protocols with views.

Axes: X problems with queries, Y tokens of each, H heads, K kv heads, h head size, P problems of the pool, N slots.
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
from apr_jax.decode.needs import Needs
from apr_jax.decode.sizes import Sizes
from apr_jax.model.config import ModelConfig
from apr_jax.model.transformer import Model

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(FOLDER.glob("*.cc")))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Disabled: GCC 12's warnings about intrinsics in its own headers, and about vectors passed between functions of one file.
WARNINGS = ("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi")
WIDE = "-mprefer-vector-width=512"  # x86 only
LANES = 16  # the head size must be a multiple
TARGET = "apr_jax_attention"


class Unavailable(Exception):
    """The kernels are unavailable; the text says why."""


def cache_folder() -> Path:
    """The folder of compiled kernels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apr_jax"


def build(compiler: str | None = None, without: Sequence[str] = ()) -> Path:
    """The compiled library, one for each combination of source, compiler, instruction set and jaxlib.

    Compiling prints a line on stderr, followed by the compiler's warnings if there are any.

    Args:
        compiler: name or path; by default `$CXX`, else `g++`. GCC is needed: the kernels use its vector extensions.
        without: flags that disable instructions of the processor ("-mno-amx-bf16"). `attention_path` and `product_path` tell
            which instructions the library uses.

    Raises:
        Unavailable: there is no compiler, or it fails.
    """
    name = compiler or os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"no C++ compiler {name!r} is found; install g++ or set CXX")
    # The predefined macros name the compiler's version and the instructions that it may use.
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
            new.replace(library)  # atomic, because other processes may compile the same library
    return library


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]} failed: {error.stderr.strip()[-500:]}") from error


@functools.cache
def load() -> ctypes.CDLL:
    """Compile the kernels if necessary, and register them with XLA.

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
    """The instructions of attention in the loaded library or a given one: AMX, AVX512-BF16, AVX-512, AVX2 or other."""
    function = (library or load()).apr_jax_attention_path
    function.argtypes, function.restype = (ctypes.c_bool, ctypes.c_int64), ctypes.c_char_p
    return function(jnp.dtype(dtype) == jnp.bfloat16, head_dim).decode()


def product_path(library: ctypes.CDLL | None = None) -> str:
    """The instructions of products with packed weights: AMX or AVX512-BF16; empty if XLA computes the products."""
    function = (library or load()).apr_jax_product_path
    function.restype = ctypes.c_char_p
    return function().decode()


def prepare(model: Model, dtype: Any) -> Model:
    """The model, with packed weights if it computes in bfloat16 and the processor multiplies bfloat16. Call `load` before."""
    packs = bool(product_path()) and jnp.dtype(dtype) == jnp.bfloat16
    return dataclasses.replace(model, params=product.pack(model.params)) if packs else model


def obstacle(
    config: ModelConfig,
    dtype: Any,
    sizes: Sizes,
    mesh: jax.sharding.Mesh,
    needs: Needs = Needs(),  # noqa: B008 - frozen
) -> str | None:
    """The reason why the kernels cannot serve such a program; None if they can."""
    platform, cut = mesh.devices.flat[0].platform, mesh.shape["model"]
    obstacles = (
        (platform != "cpu", f"they are for CPUs, not for {platform}"),
        (cut > 1, f"the mesh cuts heads {cut} ways over `model`"),
        (jnp.dtype(dtype).name not in ("bfloat16", "float32"), f"they compute in f32, not in {jnp.dtype(dtype).name}"),
        (sizes.int8_pool, "sizes.int8_pool = True: they read keys and values as they are computed"),
        (config.head_dim % LANES, f"head_dim = {config.head_dim} is no multiple of {LANES}"),
        (needs.views, "needs.views = True: they turn no queries for the pages that these look at"),
        (sizes.block % 8 or sizes.slots % 8, "sizes.attention_block or sizes.slots is no multiple of 8"),
    )
    return next((text for found, text in obstacles if found), None)


def choose(
    wanted: bool | None,
    config: ModelConfig,
    dtype: Any,
    sizes: Sizes,
    mesh: jax.sharding.Mesh,
    needs: Needs = Needs(),  # noqa: B008 - frozen
) -> bool:
    """Whether a program uses the kernels; loads them if so.

    Args:
        wanted: None: use the kernels if possible; True: or raise an error; False: never.
        needs: of the protocol.

    Raises:
        ValueError: `wanted` is True, and the kernels cannot serve the program or are unavailable.
    """
    reason = "kernel=False" if wanted is False else obstacle(config, dtype, sizes, mesh, needs)
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
    """Softmax attention under `mask`; a token that sees nothing gets 0. Call `load` before.

    Args:
        q: queries, not scaled; bfloat16 or float32, like the pool.
        keys, values: the pool of one layer, heads merged.
        problem: row of the pool for each of the X; values >= P mark idle queries.
        mask: slots that each token sees.
        fill: the slots from `fill` on are seen by no token; a multiple of 8.

    Raises:
        ValueError: q and the pool have different dtypes.
    """
    if not q.dtype == keys.dtype == values.dtype:
        raise ValueError(f"attention: q is {q.dtype}, the pool {keys.dtype} and {values.dtype}; all must be the same")
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(q.shape, q.dtype))
    return call(q, keys, values, problem.astype(jnp.int32), mask, fill.astype(jnp.int32))
