"""The configuration of a decoder-only transformer of the Llama and Qwen families, and presets."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from apr_jax.model.rope import RopeScaling

DTYPES = ("float32", "bfloat16", "float64")
BIASES = ("none", "qkv", "qkvo")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and static choices of one model; hashable, so it may be a static argument of a compiled program.

    The network is pre-norm with RMSNorm, rotary positions (rotate-half), SwiGLU and grouped-query attention. With
    `qk_norm` every head of q and k is RMS-normed before the rotation (Qwen3), which keeps small models stable at high
    learning rates.

    Attributes:
      vocabulary: V, number of token ids; usually that of the tokenizer, padded to a multiple of 64.
      width: D, size of the residual stream.
      layers: L, number of blocks.
      heads: H, number of query heads.
      kv_heads: K, number of key/value heads; divides `heads`.
      head_dim: h, size of one head; even.
      ffn: F, inner size of the feed-forward layers.
      rope_theta: base of the rotary wavelengths.
      rope: scaling of the wavelengths for long contexts; by default none.
      norm_eps: number added to the mean square inside every norm.
      qk_norm: whether q and k are normed per head.
      bias: the products of attention with a bias: "none", "qkv" (Qwen2), "qkvo" (the output as well).
      branch_embedding: 0, or the branches that the model tells apart by an embedding, which every layer adds to keys and values
        before the rotation (ParaThinker), see `apr_jax.model.branches`.
      branch_stride: 0, or how many positions a branch is further than the one before it, by a second rotation (LaneRoPE), see
        `apr_jax.model.branches`.
      tied: whether the output product uses the embedding table.
      dtype: dtype of activations. Parameters of dtype float64 override it: nothing is ever cast down from f64.
      param_dtype: dtype the parameters are stored in.
      int8_weights: the weights of products are stored in int8 instead, with a scale for each channel; for decoding, see
        `transformer.quantise`.

    Raises:
      ValueError: a field is out of range; the message names field, value, allowed values and a fix.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False
    tied: bool = True
    rope: RopeScaling = RopeScaling()
    bias: str = "none"
    branch_embedding: int = 0
    branch_stride: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    int8_weights: bool = False

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises ValueError if a field is out of range."""
        for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "head_dim", "ffn"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"ModelConfig.{name} is {value!r}; it must be an integer of at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"ModelConfig.kv_heads is {self.kv_heads}, which does not divide heads={self.heads}; "
                f"choose one of {[k for k in range(1, self.heads + 1) if self.heads % k == 0]}"
            )
        if self.head_dim % 2:
            raise ValueError(f"ModelConfig.head_dim is {self.head_dim}; rotary positions need an even size")
        for name in ("rope_theta", "norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ModelConfig.{name} is {getattr(self, name)!r}; it must be positive")
        if not isinstance(self.branch_embedding, int) or self.branch_embedding < 0:
            raise ValueError(
                f"ModelConfig.branch_embedding is {self.branch_embedding!r}; it must be an integer of at least 0, which is none"
            )
        if not self.branch_stride >= 0:
            raise ValueError(
                f"ModelConfig.branch_stride is {self.branch_stride!r}; it must be at least 0, which is none"
            )
        if not isinstance(self.int8_weights, bool):
            raise ValueError(f"ModelConfig.int8_weights is {self.int8_weights!r}; it must be True or False")
        for name, allowed in (("dtype", DTYPES), ("param_dtype", DTYPES), ("bias", BIASES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"ModelConfig.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}"
                )

    @property
    def parameters(self) -> int:
        """Number of parameters, embedding and output tables included."""
        return self.parameters_without_tables + self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters_without_tables(self) -> int:
        """Number of parameters without embedding and output tables, as papers count small models."""
        attention = (
            self.width * self.head_dim * (self.heads + 2 * self.kv_heads) + self.heads * self.head_dim * self.width
        )
        norms = 2 * self.width + (2 * self.head_dim if self.qk_norm else 0)
        biases = self.head_dim * (self.heads + 2 * self.kv_heads) if self.bias != "none" else 0
        biases += self.width if self.bias == "qkvo" else 0
        branches = self.branch_embedding * self.head_dim
        block = attention + biases + branches + 3 * self.width * self.ffn + norms
        return self.layers * block + self.width + (self.head_dim // 2 if self.branch_stride else 0)

    @property
    def branches(self) -> bool:
        """Whether the model reads a branch for every token."""
        return self.branch_embedding > 0 or self.branch_stride > 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict that `json` can write."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelConfig":
        """Inverse of `to_dict`; raises ValueError if a field is unknown or a required one is missing."""
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        missing = sorted(n for n, default in known.items() if default is dataclasses.MISSING and n not in fields)
        if unknown or missing:
            raise ValueError(f"ModelConfig: unknown fields {unknown}, missing fields {missing}; it has {sorted(known)}")
        rope = fields.get("rope", RopeScaling())
        return cls(**{**fields, "rope": rope if isinstance(rope, RopeScaling) else RopeScaling(**rope)})


def padded_vocabulary(size: int, multiple: int = 64) -> int:
    """The smallest multiple of `multiple` that holds `size` ids."""
    return -(-size // multiple) * multiple


PRESETS: Mapping[str, ModelConfig] = types.MappingProxyType(
    {
        # 1.0 M parameters: for Countdown and the tests; trains in half an hour on one CPU core.
        "tiny": ModelConfig(
            vocabulary=256, width=128, layers=4, heads=2, kv_heads=1, head_dim=64, ffn=512, qk_norm=True
        ),
        # 5 M parameters: for one small accelerator; the vocabulary is large enough for text.
        "small": ModelConfig(
            vocabulary=1024, width=256, layers=6, heads=4, kv_heads=2, head_dim=64, ffn=768, qk_norm=True
        ),
        # The Llama of the APR paper's Countdown experiments: 228 M without the tables, 293 M with them.
        "apr_228m": ModelConfig(
            vocabulary=32000, width=1024, layers=18, heads=16, kv_heads=16, head_dim=64, ffn=2752, tied=False
        ),
        # Qwen3-0.6B, the smallest public model with the same blocks.
        "qwen3_600m": ModelConfig(
            vocabulary=151936, width=1024, layers=28, heads=16, kv_heads=8, head_dim=128, ffn=3072,
            rope_theta=1e6, qk_norm=True, dtype="bfloat16", param_dtype="bfloat16",
        ),
        # Qwen3-8B, 8.2 B parameters: heads and widths of a model that needs several chips.
        "qwen3_8b": ModelConfig(
            vocabulary=151936, width=4096, layers=36, heads=32, kv_heads=8, head_dim=128, ffn=12288,
            rope_theta=1e6, qk_norm=True, tied=False, dtype="bfloat16", param_dtype="bfloat16",
        ),
    }
)  # fmt: skip
