"""Models that tell branches apart: against plain arithmetic, in files, in training; and that others know nothing of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import reference_model
from apr_jax.decode import Sizes, lines
from apr_jax.decode import book as books
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.program import Program
from apr_jax.model import io, transformer
from apr_jax.model.attention import packed_attend
from apr_jax.model.branches import with_branches
from apr_jax.model.config import ModelConfig
from apr_jax.pretrained import load_pretrained, save_pretrained
from apr_jax.protocols import Sequential, TwoStage
from apr_jax.train import rows as stored
from apr_jax.train.losses import rows_loss
from apr_jax.train.packing import Rows
from apr_jax.train.weights import load

PLAIN = ModelConfig(vocabulary=11, width=12, layers=2, heads=4, kv_heads=2, head_dim=6, ffn=20, rope_theta=100.0)
VARIANTS = {
    "embedding": dataclasses.replace(PLAIN, branch_embedding=5),
    "rotation": dataclasses.replace(PLAIN, branch_stride=7.5, qk_norm=True),
    "both": dataclasses.replace(PLAIN, branch_embedding=5, branch_stride=3, tied=False),
}
RNG = np.random.default_rng(5)
TOKENS, POSITIONS, BRANCHES = RNG.integers(0, 11, 9), RNG.integers(0, 40, 9), RNG.integers(0, 5, 9)


def random_model(config: ModelConfig) -> transformer.Model:
    """In f64, all its parameters of order 1."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape))
    return transformer.Model(transformer.graph_of(config), jax.tree.map(draw, transformer.abstract_params(config)))


def row(branches: np.ndarray) -> Rows:
    """One row of one thread, all its tokens trained on."""
    one = lambda values: np.asarray(values, np.int32)[None]
    clocks, blank = np.arange(9), np.zeros(9)
    label = one((TOKENS + 1) % 11)
    return Rows(
        one(TOKENS), one(POSITIONS), one(clocks), one(blank), one(branches), label, np.ones((1, 9), np.float32),
        np.ones((1, 1, 1), bool),
    )  # fmt: skip


def logits(model: transformer.Model, branches: np.ndarray | None, positions: np.ndarray = POSITIONS) -> np.ndarray:
    rows = row(BRANCHES)
    attend, cache = packed_attend(*map(jnp.asarray, (rows.owner, rows.clock, rows.sees))), (None,) * 2
    told = None if branches is None else jnp.asarray(branches)[None]
    at, tokens = jnp.asarray(positions)[None], jnp.asarray(TOKENS)[None]
    x, _ = transformer.hidden(model.graph, model.params, tokens, at, attend, cache, branches=told)
    return np.asarray(transformer.logits(model.graph, model.params, x))[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_a_plain_forward_pass(name):
    model = random_model(VARIANTS[name])
    params = jax.tree.map(np.asarray, model.params)
    for branches in (BRANCHES, None):
        want = reference_model.all_logits(params, model.config, TOKENS, POSITIONS, branches=branches)
        np.testing.assert_allclose(logits(model, branches), want, atol=1e-10)
    np.testing.assert_allclose(logits(transformer.fuse(model), BRANCHES), logits(model, BRANCHES), atol=1e-10)
    assert np.abs(logits(model, BRANCHES) - logits(model, None)).max() > 1e-3


def test_models_without_branches_compile_to_what_they_did():
    """Token for token the same program, whether the caller tells branches or not; and the book has no column for them."""
    graph, params = transformer.graph_of(PLAIN), transformer.abstract_params(PLAIN)

    def program(*branches):
        run = lambda params, tokens, *told: transformer.hidden(
            graph,
            params,
            tokens,
            tokens,
            lambda q, k, v, m: (q + k[..., :1, :] * v[..., :1, :], m),
            (None,) * 2,
            "everything_saveable",
            *told,
        )[0]
        return str(jax.make_jaxpr(lambda params, tokens: run(params, tokens, *branches))(params, jnp.arange(9)))

    assert program() == program(jnp.asarray(BRANCHES))
    assert "branch" not in str(jax.tree_util.tree_structure(params))
    sizes = Sizes(problems=1, lanes=1, rows=1, threads=3, slots=64, log=64, attention_block=64)
    two_stage = TwoStage(((1,), (2,)), (3, 4), (5,), 6)
    plain, told = (books.empty(sizes, protocol).threads.line.branch for protocol in (Sequential(1), two_stage))
    assert plain is None and told.tolist() == [0, 0, 0]


def test_the_second_rotation_starts_as_ranges_of_positions():
    """Group Think in its terms: branch b begins `branch_stride` positions after branch b - 1."""
    model = random_model(PLAIN)
    lanes = with_branches(model, stride=16.0)
    np.testing.assert_allclose(logits(lanes, BRANCHES), logits(model, None, POSITIONS + 16 * BRANCHES), atol=1e-10)
    np.testing.assert_array_equal(logits(lanes, 0 * BRANCHES), logits(model, None))


def test_a_model_that_gets_branches_computes_what_it_did():
    model = random_model(PLAIN)
    told = with_branches(model, embedding=5)
    np.testing.assert_array_equal(logits(told, BRANCHES), logits(model, None))
    blank = transformer.init(told.config, jax.random.key(0)).params
    assert jax.tree.structure(told.params) == jax.tree.structure(blank)
    assert (
        told.config.parameters
        == sum(leaf.size for leaf in jax.tree.leaves(blank))
        == model.config.parameters + 2 * 5 * 6
    )
    assert jax.tree.structure(transformer.logical_axes(told.config), is_leaf=lambda x: isinstance(x, tuple)) == (
        jax.tree.structure(blank)
    )
    both = VARIANTS["both"]
    assert both.parameters == sum(leaf.size for leaf in jax.tree.leaves(transformer.abstract_params(both)))
    with pytest.raises(ValueError, match="reads branches already"):
        with_branches(told, embedding=5)


def test_lines_keep_their_branch():
    """A child begins in the branch that its fork says, and whatever continues it, or is split off, is of the same one."""
    sizes = Sizes(problems=1, lanes=1, rows=1, threads=6, slots=64, log=64, attention_block=64)
    needs = dataclasses.replace(books.Nobodys().needs, branches=2)
    book = books.open_root(books.empty(sizes, dataclasses.replace(books.Nobodys(), needs=needs)), samples=True)
    root, child, number = jnp.int32(0), jnp.int32(1), books.numbers(book)
    book = books.open_children(book, root, 2)
    book = fork(book, root, books.opened(book, root), context=root, branch=jnp.where(number == 1, 2, 0))
    assert book.threads.line.branch.tolist() == [0, 2, 0, 0, 0, 0]
    gone = lines.go_on(book, child, book.sees[child], jnp.int32(3))
    assert gone.threads.line.branch.tolist() == [0, 2, 0, 2, 0, 0]
    free = book.update(book.mask(child), parent=books.NOBODY, length=4)  # whom nobody waits for may be split
    cut = lines.split(free, child, jnp.int32(2), book.sees[child], jnp.int32(3))
    assert cut.used == 5 and cut.threads.line.branch.tolist() == [0, 2, 0, 2, 2, 0]

    plain = books.open_child(books.open_root(books.empty(sizes), samples=True), root)
    with pytest.raises(ValueError, match="fork: branch is given; Nobodys.needs.branches is 0, say what the largest is"):
        fork(plain, root, books.opened(plain, root), branch=1)


def test_gradients_reach_what_tells_branches_apart():
    model, classes = random_model(VARIANTS["both"]), np.zeros(11, np.int32)

    @functools.partial(jax.jit, static_argnums=1)
    def gradients(rows, remat):
        return jax.grad(lambda params: rows_loss(model.graph, params, rows, classes, 1, 4, remat)[0])(model.params)

    given = [jax.tree.map(jnp.asarray, row(branches)) for branches in (BRANCHES, 0 * BRANCHES)]
    keep, drop = "everything_saveable", "nothing_saveable"
    told, again, none = map(
        io.flatten, (gradients(given[0], keep), gradients(given[0], drop), gradients(given[1], keep))
    )
    for name, value in told.items():
        np.testing.assert_allclose(value, again[name], atol=1e-12, err_msg=name)
    table = "layers.1.attention.branch_embedding"
    assert np.abs(told["branch_factor"]).max() > 1e-6 and np.abs(none["branch_factor"]).max() == 0
    assert np.flatnonzero(np.abs(told[table]).max(axis=1) > 1e-9).tolist() == np.unique(BRANCHES).tolist()


def test_rows_on_disk_keep_branches(tmp_path):
    rows = row(BRANCHES)
    assert stored.write(tmp_path, [rows], 9, 1) == 1
    found = stored.RowStore.open(tmp_path).read(np.array([0, -1]))
    np.testing.assert_array_equal(found.branch, [BRANCHES, 0 * BRANCHES])
    (tmp_path / "branch.bin").unlink()  # as in folders of earlier versions
    np.testing.assert_array_equal(stored.RowStore.open(tmp_path).read(np.array([0])).branch, [0 * BRANCHES])


def test_files_keep_what_tells_branches_apart(tmp_path):
    """The table of ParaThinker's engine, `seg_embeddings`, in a folder for transformers; both options in a file of ours."""
    cast = lambda model: dataclasses.replace(model, params=jax.tree.map(lambda x: x.astype(jnp.float32), model.params))
    model = cast(random_model(VARIANTS["embedding"]))
    save_pretrained(tmp_path / "folder", model)
    names = [f"model.layers.{layer}.self_attn.seg_embeddings.weight" for layer in range(2)]
    tensors, fields = (
        safetensors.numpy.load_file(tmp_path / "folder" / "model.safetensors"),
        json.loads((tmp_path / "folder" / "config.json").read_text()),
    )
    assert fields["max_segments"] == 5
    for layer, name in enumerate(names):
        np.testing.assert_array_equal(
            tensors[name], model.params["layers"][str(layer)]["attention"]["branch_embedding"]
        )
    del fields["max_segments"]  # which the released configurations may lack
    (tmp_path / "folder" / "config.json").write_text(json.dumps(fields))
    found = load_pretrained(tmp_path / "folder")
    assert found.config == model.config
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)

    del tensors[names[1]]
    safetensors.numpy.save_file(tensors, tmp_path / "folder" / "model.safetensors")
    with pytest.raises(ValueError, match="missing.*layers.1.self_attn.seg_embeddings"):
        load_pretrained(tmp_path / "folder")

    lanes = cast(random_model(VARIANTS["rotation"]))
    with pytest.raises(ValueError, match="branch_stride is 7.5: no family"):
        save_pretrained(tmp_path / "lanes", lanes)
    io.save(tmp_path / "lanes.safetensors", lanes, lanes.config)
    again = io.load(tmp_path / "lanes.safetensors")
    assert again.config == lanes.config
    jax.tree.map(np.testing.assert_array_equal, again.params, lanes.params)


def test_training_may_give_a_model_branches(tmp_path, unchecked):
    plain = dataclasses.replace(PLAIN, param_dtype="float32")
    model = transformer.init(plain, jax.random.key(0))
    io.save(tmp_path / "start.safetensors", model, plain)
    config = dataclasses.replace(plain, branch_embedding=5)
    params = load(str(tmp_path / "start.safetensors"), config, data=None)
    assert np.all(params["layers"]["0"]["attention"]["branch_embedding"] == 0)
    np.testing.assert_array_equal(params["embed"], model.params["embed"])


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: dataclasses.replace(PLAIN, branch_embedding=-1), "branch_embedding is -1; it must be an integer of at least 0"),
        (lambda: dataclasses.replace(PLAIN, branch_stride=-2.0), "branch_stride is -2.0; it must be at least 0"),
        (
            lambda: Program(
                transformer.graph_of(dataclasses.replace(PLAIN, branch_embedding=2)), TwoStage(((1,), (2,)), (3, 4), (5,), 6),
                Sizes(problems=1, lanes=1, rows=1, threads=3, slots=64, log=64, attention_block=64),
            ),
            "branch_embedding = 2: TwoStage has branches up to 2, so at least 3",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, error):
    assert Needs().branches == 0
    with pytest.raises(ValueError, match=error):
        make()
