"""Options and numbers as frozen dataclasses: what a model is, and how tokens are chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .checks import callback, integer, number, shown
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    #: Called with the tokens generated so far; returns which tokens are allowed next:
    #: bool[vocab_size], a bit set u32[(vocab_size + 31) // 32] with bit i % 32 of word i // 32 for
    #: token i, or None for all.
    TokenMask = Callable[[Sequence[int]], NDArray[np.bool_] | NDArray[np.uint32] | None]

__all__ = ["ModelConfig", "Sampling"]


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of one DeepSeek V4 model. Comments give the GGUF key, under ``deepseek4.``.

    Example:
        >>> import grebe
        >>> grebe.Model.load().config.n_layers
        4
    """

    name: str  # general.name
    n_layers: int  # block_count
    hidden_size: int  # embedding_length
    vocab_size: int  # vocab_size
    n_heads: int  # attention.head_count
    head_dim: int  # attention.key_length
    rope_dim: int  # rope.dimension_count
    q_lora_rank: int  # attention.q_lora_rank
    o_groups: int  # attention.output_group_count
    o_lora_rank: int  # attention.output_lora_rank
    window_size: int  # attention.sliding_window
    compress_ratios: tuple[int, ...]  # attention.compress_ratios: 0, 4 or 128 per layer
    index_n_heads: int  # attention.indexer.head_count
    index_head_dim: int  # attention.indexer.key_length
    index_top_k: int  # attention.indexer.top_k
    hc_mult: int  # hyper_connection.count
    hc_sinkhorn_iters: int  # hyper_connection.sinkhorn_iterations
    hc_eps: float  # hyper_connection.epsilon
    rms_eps: float  # attention.layer_norm_rms_epsilon
    n_experts: int  # expert_count
    n_experts_per_token: int  # expert_used_count
    n_shared_experts: int  # expert_shared_count
    moe_intermediate_size: int  # expert_feed_forward_length
    routed_scaling_factor: float  # expert_weights_scale
    n_hash_layers: int  # hash_layer_count
    swiglu_clamp: tuple[float, ...]  # swiglu_clamp_exp, per layer; 0: none
    swiglu_clamp_shared: tuple[float, ...]  # swiglu_clamp_shexp
    rope_theta: float  # rope.freq_base
    compress_rope_theta: float  # attention.compress_rope_freq_base
    yarn_factor: float  # rope.scaling.factor
    yarn_original_context: int  # rope.scaling.original_context_length
    yarn_beta_fast: float  # rope.scaling.yarn_beta_fast
    yarn_beta_slow: float  # rope.scaling.yarn_beta_slow
    max_context: int  # context_length
    bos_token: int  # tokenizer.ggml.bos_token_id
    eos_token: int  # tokenizer.ggml.eos_token_id
    n_mtp_layers: int  # draft layers found in the file (recognised, not run)

    def kv_row_bytes(self, kv_rounding: str = "official", kernels: str = "fast") -> int:
        """Bytes of one stored KV row.

        Official rounding: an E4M3 code per value without rotation, a scale byte per 64 of them, the
        rotated values as bf16 (f32 for exact kernels), padded to 8 bytes (Flash: 448 + 7 + 128 ->
        584). Off: f32 values.
        """
        if kv_rounding == "off":
            return 4 * self.head_dim
        plain = self.head_dim - self.rope_dim
        rotated = self.rope_dim * (4 if kernels == "exact" else 2)
        return (plain + plain // 64 + rotated + 7) // 8 * 8

    def index_row_bytes(self, kv_rounding: str = "official") -> int:
        """Bytes of one stored index row: FP4 codes and a scale byte per 32 (Flash: 68), or f32."""
        d = self.index_head_dim
        return 4 * d if kv_rounding == "off" else d // 2 + d // 32

    def kv_bytes_per_token(self, kv_rounding: str = "official", kernels: str = "fast") -> float:
        """What each further token of context costs in all layers (Flash: 3514.2 bytes)."""
        row = self.kv_row_bytes(kv_rounding, kernels)
        index_row = self.index_row_bytes(kv_rounding)
        return sum(
            (row + index_row) / ratio if ratio == 4 else row / ratio
            for ratio in self.compress_ratios
            if ratio > 0
        )

    def kv_fixed_bytes(self, kv_rounding: str = "official", kernels: str = "fast") -> int:
        """What a session holds whatever its length: raw windows and the compressors' sums."""
        window = self.n_layers * self.window_size * self.kv_row_bytes(kv_rounding, kernels)
        pools = sum(
            2 * (self.head_dim + self.index_head_dim) if ratio == 4 else self.head_dim
            for ratio in self.compress_ratios
            if ratio > 0
        )
        return window + 4 * 3 * pools  # f32 (max, sum, weighted sum) per channel


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The default is greedy: the exact argmax, the lowest id on ties.

    Types are checked here and ranges when a generation starts, with an error that names the
    parameter. Comparable, hashable, and picklable if the mask is.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability, in (0, 1].
        min_p: drop tokens less likely than this share of the most likely one, in [0, 1).
        repetition_penalty: > 0; divides positive and multiplies negative logits of tokens in prompt
            or output.
        presence_penalty: subtracted once from tokens in the output.
        frequency_penalty: subtracted from tokens in the output, per occurrence.
        logit_bias: added to the logits of these token ids; copied.
        seed: 0 to 2**64 - 1; equal seeds give equal draws on every machine. None: a fresh one for
            each generation, which reports it.
        top_logprobs: how many alternatives each event lists, 0 to 1000.
        mask: hook for grammars. Called before each token with the tokens generated so far; returns
            bool[vocab_size], a bit set u32[(vocab_size + 31) // 32], or None to allow every token.

    Example:
        >>> import grebe
        >>> grebe.Sampling(temperature=0.7, top_p=0.95, seed=1).temperature
        0.7
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    top_logprobs: int = 0
    mask: TokenMask | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # how a frozen dataclass is filled

        for name in _NUMBERS:
            put(name, number(name, getattr(self, name)))
        put("top_k", integer("top_k", self.top_k, 0))
        put("top_logprobs", integer("top_logprobs", self.top_logprobs, 0, 1000))
        if self.seed is not None:
            put("seed", integer("seed", self.seed, 0, 2**64 - 1))
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidArgumentError(
                f"logit_bias is {shown(self.logit_bias)}; a mapping of token ids to numbers is "
                "expected"
            )
        bias = {
            integer("logit_bias key", token, 0, 2**31 - 1): number(f"logit_bias[{token}]", value)
            for token, value in self.logit_bias.items()
        }
        put("logit_bias", bias)
        callback("mask", self.mask)

    def __hash__(self) -> int:
        values = (getattr(self, f.name) for f in fields(self) if f.name != "logit_bias")
        return hash((*values, frozenset(self.logit_bias.items())))

    def resolved_seed(self) -> int:
        """The seed, or a fresh one of 63 random bits."""
        return self.seed if self.seed is not None else int.from_bytes(os.urandom(8), "little") >> 1


_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def model_config(numbers: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from the engine's dictionary. Floats come from f32 and are shown as such."""
    values: dict[str, Any] = {
        key: _short(value) if isinstance(value, float) else value for key, value in numbers.items()
    }
    return ModelConfig(**values)


def _short(value: float) -> float:
    """The shortest decimal that is this f32: 1e-06, not 9.999999974752427e-07."""
    return float(f"{value:.7g}")
