"""Devices that are not there: the figures of their data sheets, and descriptions for which the compiler makes programs."""

import dataclasses
import importlib.util
import os

import jax
from jax.experimental import mesh_utils, topologies

from apr_jax.decode.placement import AXES

GIB = 2**30
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 80000000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""An H100 (SXM) as XLA describes the target of a program, `GpuTargetConfigProto`."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of a data sheet: bytes of memory, bytes a second from memory, bf16 operations a second."""

    hbm: int
    bandwidth: float
    flops: float


def chip(kind: str) -> Chip:
    """Raises ValueError for a kind of device that is not in the table."""
    chips = {
        "TPU v3": Chip(16 * GIB, 0.450e12, 61.5e12),  # jax's device is a core, half of a chip
        "TPU v4": Chip(32 * GIB, 1.228e12, 275e12),
        "TPU v5 lite": Chip(16 * GIB, 0.819e12, 197e12),
        "TPU v5": Chip(95 * GIB, 2.765e12, 459e12),
        "TPU v6 lite": Chip(32 * GIB, 1.640e12, 918e12),
        "TPU7x": Chip(192 * GIB, 7.370e12, 2307e12),
        "NVIDIA H100 80GB HBM3": Chip(80 * 10**9, 3.35e12, 989e12),
    }
    if kind not in chips:
        raise ValueError(f"no figures for the device {kind!r}; there are some for {', '.join(chips)}")
    return chips[kind]


def describe(topology: str) -> topologies.TopologyDescription:
    """The devices of a topology: chips of a TPU as libtpu names them (`v5e:2x4`), or GPUs of one machine (`h100:8`).

    Raises:
        ValueError: the compiler for these devices is missing, or does not know the topology.
    """
    # No device is looked for, nor the cloud's metadata server, and other processes may load libtpu too.
    jax.config.update("jax_platforms", "cpu")
    kind, _, count = topology.partition(":")
    return _gpus(topology, count) if kind == "h100" else _tpus(topology)


def _tpus(topology: str) -> topologies.TopologyDescription:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu is not installed: it holds the TPU compiler. pip install -r requirements-tpu.txt "
            "(PyPI has it for Linux on x86-64 alone); no TPU is needed"
        )
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"topology {topology!r}: {reason}; names look like v5e:2x4, v5p:2x2x1, v6e:4x4") from error


def has_cuda_plugin() -> bool:
    """Whether the plugin with the compiler for NVIDIA's GPUs is installed."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _gpus(topology: str, count: str) -> topologies.TopologyDescription:
    if not has_cuda_plugin():
        raise ValueError(
            'the CUDA plugin is not installed: it holds the compiler for GPUs. pip install "jax[cuda12]"; no GPU and no '
            "driver is needed"
        )
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"topology {topology!r}: the number of GPUs of one machine follows the colon, as in h100:8")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # the plugin then loads without a driver
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{int(count)}")
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(f"topology {topology!r}: {str(error).splitlines()[0]}") from error


def options(topology: str) -> dict[str, str]:
    """Options that the compiler needs for a topology with this name: programs for a GPU are tuned by timing, which needs one."""
    return {"xla_gpu_autotune_level": "0"} if topology.startswith("h100:") else {}


def mesh_of(topology: topologies.TopologyDescription, name: str, data: int) -> jax.sharding.Mesh:
    """The mesh [data, devices / data] over the devices of a topology with this name.

    Raises:
        ValueError: `data` does not divide the devices, or the chips have no such mesh.
    """
    count = len(topology.devices)
    if data < 1 or count % data:
        raise ValueError(f"data = {data}: must divide the {count} chips of {name}")
    shape = (data, count // data)
    try:  # an axis of the mesh may be half an axis of the chips: 2 x 8 of 4 x 4
        devices = mesh_utils.create_device_mesh(shape, list(topology.devices), allow_split_physical_axes=True)
    except NotImplementedError as error:
        raise ValueError(f"data = {data}: {name} has no mesh of {shape[0]} x {shape[1]}: {error}") from error
    return jax.sharding.Mesh(devices, AXES)
