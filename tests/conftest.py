"""Tests run in 64-bit on four virtual CPU devices, and the shapes that signatures promise are checked."""

import collections
import gc
import importlib.metadata
import os

# Nearly all of the tests' time is compiling: programs that run for a moment need not be fast. Programs that tests start follow.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
VERSION = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
if VERSION <= (0, 10):  # later ones know no such flag, and end the process
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # half the memory mappings, see `let_programs_go`
os.environ.setdefault("XLA_FLAGS", FLAGS)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)

# Annotations say the rank that is true inside the function; what is vmapped is written for one problem, see `shapes`.
CHECKED = ["decode", "model", "train"]
jaxtyping.install_import_hook([f"apr_jax.{name}" for name in CHECKED], "shapes.checked")

# How long an example takes says more of the machine than of the code: the first one compiles.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.load_profile("patient")


@pytest.fixture
def unchecked():
    """Annotations are not checked: for tests of what the package itself says to a wrong argument."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_collection_finish(session):
    """Tracing makes objects by the million, few of them in cycles; looking for these as often as usual is a quarter of its time."""
    gc.collect()
    gc.freeze()  # modules stay
    gc.set_threshold(50_000, 20, 100)


# What is kept beyond its process: programs that take long, and where.
KEPT = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 0.5}


@pytest.fixture(autouse=True, scope="module")
def let_programs_go():
    """A compiled program takes hundreds of memory mappings, of which Linux grants a process 65,530: beyond that it crashes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Programs that the tests of a module, and the processes that they start, have in common are compiled by the first one."""
    before = {name: getattr(jax.config, name) for name in KEPT}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (KEPT | {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}).items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


# ---- what was not run

# Reasons to leave a test out that installing the usual packages does not take away: the plugin is gigabytes of libraries.
ALLOWED = ("processor", "CUDA plugin")


def pytest_addoption(parser):
    parser.addoption(
        "--complete", action="store_true", help="fail if a test is skipped for a reason that is not in ALLOWED"
    )


def left_out(config) -> collections.Counter[str]:
    """The reasons for which tests were skipped, but those that are allowed, with how many there were of each."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []  # the workers of xdist have no reporter
    reasons = collections.Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
    return collections.Counter(
        {reason: count for reason, count in reasons.items() if not any(name in reason for name in ALLOWED)}
    )


def pytest_terminal_summary(terminalreporter, config):
    if reasons := left_out(config):
        terminalreporter.section(
            f"{reasons.total()} skipped; `make complete` installs what they need and runs them all"
        )
        for reason, count in reasons.items():
            terminalreporter.line(f"{count} skipped: {reason}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if session.config.getoption("--complete") and left_out(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
