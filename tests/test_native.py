"""The CPU kernels against plain attention and plain products, and the engine with them against the engine without."""

import ctypes
import dataclasses
import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import processor
from apr_jax import sharding
from apr_jax.decode import Engine, Sizes, native
from apr_jax.decode.native import product
from apr_jax.model import transformer
from apr_jax.model.attention import masked_attention
from apr_jax.model.config import ModelConfig
from benchmarks.scripted import Scripted

CONFIG = ModelConfig(vocabulary=64, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96)


# By what bfloat16 is computed with: instructions to leave out, so that what poorer processors do is seen on a richer one too.
X86 = {
    "AMX": (),
    "AVX512-BF16": ("-mno-amx-bf16",),
    "AVX-512": ("-mno-amx-bf16", "-mno-avx512bf16"),
    "AVX2": ("-mno-amx-bf16", "-mno-avx512f", "-mno-bmi2"),
}
PATHS = X86 if platform.machine() == "x86_64" else {"other": ()}


def need_kernel() -> ctypes.CDLL:
    """The kernels; that they do not compile is a failure where there is a compiler."""
    if not shutil.which(os.environ.get("CXX") or "g++"):
        pytest.skip("there is no C++ compiler")
    return native.load()


@pytest.fixture(scope="module", params=PATHS)
def library(request) -> tuple[str, ctypes.CDLL]:
    """The kernels as for a processor that has no more than a path needs, called under its name."""
    need_kernel()
    if request.param not in processor.paths():
        pytest.skip(f"the processor, {processor.name()}, has no {request.param}")
    library = ctypes.CDLL(str(native.build(without=PATHS[request.param])))
    assert native.attention_path("bfloat16", 64, library) == request.param
    for target in (native.TARGET, product.TARGET):
        handler = jax.ffi.pycapsule(getattr(library, target))
        jax.ffi.register_ffi_target(f"{target} {request.param}", handler, platform="cpu")
    return request.param, library


@pytest.fixture
def path(library, monkeypatch) -> str:
    """The name of the path that the kernels called by a test take."""
    for module in (native, product):
        monkeypatch.setattr(module, "TARGET", f"{module.TARGET} {library[0]}")
    return library[0]


def test_a_path_is_said(library):
    """Of f32, and of heads that none of the faster products is compiled for, it is that of vectors; products follow."""
    name, kernels = library
    vectors = {"AMX": "AVX-512", "AVX512-BF16": "AVX-512"}.get(name, name)
    assert native.attention_path("bfloat16", 128, kernels) == name
    assert native.attention_path("bfloat16", 16, kernels) == native.attention_path("float32", 64, kernels) == vectors
    assert native.product_path(kernels) == ("" if name == vectors else name)


def plain(q, keys, values, problem, mask):
    """`masked_attention` in f32 on whole pools; nothing for problems that there are not."""
    size = q.shape[-1]
    wide = lambda x: x.astype(jnp.float32)
    at = jnp.minimum(problem, keys.shape[0] - 1)
    k, v = (wide(x[at]).reshape(len(problem), x.shape[1], -1, size) for x in (keys, values))
    return masked_attention(wide(q), k, v, mask & (problem < keys.shape[0])[:, None, None])


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("heads, kv_heads, size", [(4, 1, 64), (9, 3, 64), (8, 8, 16), (10, 2, 128), (4, 2, 80)])
def test_kernel_equals_plain_attention(path, heads, kv_heads, size, tokens, dtype, tolerance):
    rng = np.random.default_rng(size + tokens)
    pool, slots = 3, 200
    problem = jnp.array([2, 0, 2, pool, 1], jnp.int32)  # one asks about nobody
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    q = 3 * draw(len(problem), tokens, heads, size)
    keys, values = draw(pool, slots, kv_heads * size), draw(pool, slots, kv_heads * size)
    # Runs of slots, as threads have them; some tokens see nothing, some a single slot, nobody the last ones.
    runs = rng.random((len(problem), tokens, slots // 8)) < 0.3
    mask = np.repeat(runs, 8, axis=2) & (rng.random((len(problem), tokens, slots)) < 0.9)
    mask[0, 0], mask[1, -1] = False, np.arange(slots) == 5
    mask[..., 184:] = False
    found = jax.jit(native.attend)(q, keys, values, problem, jnp.asarray(mask), jnp.int32(184))
    expected = plain(q, keys, values, problem, jnp.asarray(mask))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=tolerance, rtol=tolerance)
    assert not np.any(found[3]) and not np.any(found[0, 0])


@pytest.mark.parametrize("rows, busy", [(1, 1), (16, 1), (33, 1), (100, 1), (33, 0.5), (100, 0.3), (100, 0)])
@pytest.mark.parametrize("n, m", [(32, 32), (192, 96), (64, 4096)])
@pytest.mark.parametrize("library", [path for path in ("AMX", "AVX512-BF16") if path in PATHS], indirect=True)
def test_product_with_packed_weights(library, path, rows, busy, n, m):
    """Rows that are zero, which are not multiplied, come out as zero."""
    assert native.product_path(library[1]) == path
    rng = np.random.default_rng(rows + n)
    x, weight = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((2, rows, n), (n, m)))
    x = jnp.where(rng.random((2, rows, 1)) < busy, x, -0.0)
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64)
    packed = product.packed(weight.reshape(2, n // 2, m), 2)
    found = jax.jit(lambda x, packed: (packed.multiply(x, True), packed.multiply(x, False)))(x, packed)
    np.testing.assert_allclose(found[0], expected, atol=1e-4, rtol=1e-5)
    np.testing.assert_array_equal(found[1], found[0].astype(jnp.bfloat16))
    assert found[0].dtype == jnp.float32


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_with_packed_weights(tied):
    """Same logits as without, within rounding; what does not fit is left as it is."""
    need_kernel()
    config = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16", tied=tied, ffn=104)
    model = transformer.fuse(transformer.init(config, jax.random.key(0)))
    packed = dataclasses.replace(model, params=product.pack(model.params))
    layer = packed.params["layers"]["0"]
    assert isinstance(layer["attention"]["out"], product.Packed) and not isinstance(
        layer["ffn"]["down"], product.Packed
    )
    assert isinstance(
        packed.params["embed"] if tied else packed.params["head"], product.Table if tied else product.Packed
    )
    tokens, position = jnp.arange(12).reshape(2, 6), jnp.broadcast_to(jnp.arange(6), (2, 6))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((6, 6), bool)), (2, 6, 6))
    attend = lambda q, k, v, memory: (masked_attention(q, k, v, mask), memory)

    @jax.jit
    def logits(model):
        x, _ = transformer.hidden(model.graph, model.params, tokens, position, attend, (None,) * config.layers)
        return transformer.logits(model.graph, model.params, x)

    np.testing.assert_allclose(logits(packed), logits(model), atol=2e-3)


def test_what_is_no_token_is_zero_throughout():
    """So that its rows are not multiplied, and nobody else's logits depend on it."""
    need_kernel()
    config = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    model = native.prepare(transformer.fuse(transformer.init(config, jax.random.key(0))), jnp.bfloat16)
    tokens, position = jnp.array([[5], [-1], [7], [-1]]), jnp.zeros((4, 1), jnp.int32)
    attend = lambda q, k, v, memory: (jnp.where(tokens[..., None, None] < 0, 0, q), memory)
    run = jax.jit(
        lambda tokens, position: transformer.hidden(model.graph, model.params, tokens, position, attend, (None,) * 2)
    )
    x, _ = run(tokens, position + 3)
    assert not np.any(x[1]) and not np.any(x[3])
    np.testing.assert_array_equal(x[::2], run(jnp.where(tokens < 0, 9, tokens), position + 3)[0][::2])


def test_large_scores_do_not_overflow():
    need_kernel()
    q = jnp.full((1, 1, 1, 16), 1e4, jnp.float32)
    keys = jnp.repeat(jnp.array([-1e4, 1e4, 1e4, 0, 0, 0, 0, 0], jnp.float32), 16).reshape(1, 8, 16)
    values = jnp.repeat(jnp.arange(8, dtype=jnp.float32), 16).reshape(1, 8, 16)
    mask = (jnp.arange(8) < 3)[None, None]
    found = jax.jit(native.attend)(q, keys, values, jnp.zeros(1, jnp.int32), mask, jnp.int32(8))
    np.testing.assert_allclose(found, 1.5, rtol=1e-6)
    with pytest.raises(ValueError, match="float64"):
        native.attend(q, keys.astype(jnp.float64), values, jnp.zeros(1, jnp.int32), mask, jnp.int32(8))


def test_engine_with_and_without_the_kernel():
    """Forks, feeding by tiles and joins of several problems: same tokens, log-probabilities within rounding."""
    need_kernel()
    model = transformer.init(CONFIG, jax.random.key(0))
    protocol = Scripted(3, stitch=True)
    sizes = Sizes(
        problems=2, lanes=3, rows=6, feed_tiles=2, feed_chunk=8, threads=protocol.needs.threads, slots=256, log=256,
        queue=4, prompt=40, outbox=4, attention_block=64,
    )  # fmt: skip
    problems = [protocol.problem(i, range(3, 20 + i), 5, (9, 4 + i, 7), 6) for i in range(4)]
    with_kernel, without = (
        sorted(Engine(model, protocol, sizes, kernel=kernel).decode(problems), key=lambda t: t.problem)
        for kernel in (True, False)
    )
    for one, other in zip(with_kernel, without, strict=True):
        np.testing.assert_array_equal(one.log.token, other.log.token)
        np.testing.assert_allclose(one.log.logprob, other.log.logprob, atol=2e-5)


def test_what_the_kernels_do_not_serve():
    need_kernel()
    sizes, mesh = Sizes(), sharding.make_mesh()
    assert native.obstacle(CONFIG, jnp.float32, sizes, mesh) is None
    assert "float64" in native.obstacle(CONFIG, jnp.float64, sizes, mesh)
    assert "head_dim = 8" in native.obstacle(dataclasses.replace(CONFIG, head_dim=8), jnp.float32, sizes, mesh)
    assert "multiple of 8" in native.obstacle(
        CONFIG, jnp.float32, Sizes(slots=20, page_size=4, attention_block=20), mesh
    )
    single = transformer.fuse(transformer.init(CONFIG, jax.random.key(0)))
    assert native.prepare(single, jnp.float32) is single
    assert not native.choose(False, CONFIG, jnp.float32, sizes, mesh)
    with pytest.raises(ValueError, match="float64"):
        native.choose(True, CONFIG, jnp.float64, sizes, mesh)


@pytest.fixture(scope="module")
def throwing(tmp_path_factory) -> Callable:
    """throwing.cc as a function: throwing(pieces, thrower, memory)."""
    need_kernel()
    path = tmp_path_factory.mktemp("throwing") / "throwing.so"
    includes = ("-I", native.FOLDER, "-isystem", jax.ffi.include_dir())
    source = Path(__file__).with_name("throwing.cc")
    command = [os.environ.get("CXX") or "g++", "-std=c++17", "-shared", "-fPIC", *includes, source, "-o", path]
    subprocess.run(command, check=True)
    handler = jax.ffi.pycapsule(ctypes.CDLL(str(path)).throwing)
    jax.ffi.register_ffi_target("throwing", handler, platform="cpu")

    @functools.partial(jax.jit, static_argnums=0)
    def call(pieces: int, thrower: int, memory: bool) -> jax.Array:
        out = jax.ShapeDtypeStruct((pieces,), jnp.int32)
        return jax.ffi.ffi_call("throwing", out)(jnp.int32(thrower), jnp.int32(memory))

    return call


@pytest.mark.parametrize("thrower", [0, 1, 5, 39, -2])
def test_a_thread_that_throws_ends_the_call(throwing, thrower):
    """Whichever thread it is, with a piece or before its first; calls after it are well."""
    for _ in range(3):
        with pytest.raises(jax.errors.JaxRuntimeError, match="throwing: a piece is bad"):
            throwing(40, thrower, False).block_until_ready()
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED: throwing: there is no memory"):
            throwing(40, thrower, True).block_until_ready()
        assert throwing(40, -1, False).all()


def test_an_error_in_attention_ends_the_call():
    """No vector has the size that a fill below 0 asks for."""
    need_kernel()
    q, pool = jnp.ones((4, 8, 2, 16), jnp.float32), jnp.ones((4, 64, 32), jnp.float32)
    run = jax.jit(native.attend)
    arguments = q, pool, pool, jnp.arange(4, dtype=jnp.int32), jnp.ones((4, 8, 64), bool)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: attention: vector"):
        run(*arguments, jnp.int32(-(2**20))).block_until_ready()
    np.testing.assert_allclose(run(*arguments, jnp.int32(64)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", PATHS)
def test_the_kernels_compile_without_a_warning(name):
    """For AMX too, on any x86: what is compiled is not run."""
    need_kernel()
    flags = (*native.FLAGS, *native.WARNINGS, *PATHS[name], "-fsyntax-only", "-Werror")
    flags += ("-mamx-tile", "-mamx-bf16", "-mavx512bf16", "-mavx512bw") if name == "AMX" else ()
    command = [os.environ.get("CXX") or "g++", *flags, "-isystem", jax.ffi.include_dir(), *native.SOURCES]
    subprocess.run(command, check=True)


def test_compiling_is_said_once(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    need_kernel()
    monkeypatch.setattr(native, "SOURCES", (Path(__file__).with_name("throwing.cc"),))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-I", str(native.FOLDER)))
    library = native.build()
    assert native.build() == library
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "compiles its CPU kernels" in said and str(library) in said


def test_no_compiler_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(native.Unavailable, match="no-such-compiler"):
        native.build("no-such-compiler")
    with pytest.raises(native.Unavailable, match="failed"):
        native.build("false")
    monkeypatch.setattr(native, "load", lambda: native.build("no-such-compiler"))
    with pytest.warns(UserWarning, match="without its CPU kernels"):
        assert not native.choose(None, CONFIG, jnp.float32, Sizes(), sharding.make_mesh())
