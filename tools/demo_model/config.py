"""Numbers of the demo model: one dataclass, its presets, and the names DeepSeek gives to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """The architecture. The defaults are the `demo` preset; constants of V4 Flash are kept as they are."""

    vocab_size: int = 8192
    hidden_size: int = 256
    n_layers: int = 6
    n_mtp_layers: int = 1
    # Heads 512 wide with 64 rotary channels, a window of 128 and index rows 128 wide are Flash's own sizes: the demo
    # then runs the kernels that Flash runs.
    n_heads: int = 4
    head_dim: int = 512
    rope_dim: int = 64
    q_lora_rank: int = 256
    o_groups: int = 2
    o_lora_rank: int = 128
    window_size: int = 128
    index_n_heads: int = 8
    index_head_dim: int = 128
    index_top_k: int = (
        128  # in training: selection starts at 4 * 128 tokens, so most windows exercise it
    )
    served_index_top_k: int = 512  # in the exported files, as in Flash; README.md has the figures
    n_experts: int = 16
    n_experts_per_token: int = 4
    moe_intermediate_size: int = 256
    n_hash_layers: int = 3
    routed_scaling_factor: float = 1.5
    swiglu_clamp: float = 10.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    eps: float = 1e-6
    rope_theta: float = 1e4
    compress_rope_theta: float = 1.6e5
    yarn_factor: float = 16.0
    yarn_original_context: int = 65536
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    compress_ratios: list[int] = field(default_factory=list)  # of the layers, then of the MTP block

    def __post_init__(self) -> None:
        if not self.compress_ratios:  # Flash's schedule: two plain layers, then 4, 128, 4, 128, ...
            self.compress_ratios = [
                0 if i < 2 else 4 if i % 2 == 0 else 128 for i in range(self.n_layers)
            ] + [0] * self.n_mtp_layers

    def to_huggingface(self) -> dict[str, Any]:
        """The content of `config.json` beside DeepSeek's checkpoint."""
        return {
            "architectures": ["DeepseekV4ForCausalLM"],
            "model_type": "deepseek_v4",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            "hc_eps": self.eps,
            "hc_mult": self.hc_mult,
            "hc_sinkhorn_iters": self.hc_sinkhorn_iters,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "index_head_dim": self.index_head_dim,
            "index_n_heads": self.index_n_heads,
            "index_topk": self.served_index_top_k,
            "initializer_range": 0.02,
            "max_position_embeddings": 1048576,
            "moe_intermediate_size": self.moe_intermediate_size,
            "n_routed_experts": self.n_experts,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": self.n_heads,
            "num_experts_per_tok": self.n_experts_per_token,
            "num_hidden_layers": self.n_layers,
            "num_hash_layers": self.n_hash_layers,
            "num_key_value_heads": 1,
            "num_nextn_predict_layers": self.n_mtp_layers,
            "o_groups": self.o_groups,
            "o_lora_rank": self.o_lora_rank,
            "q_lora_rank": self.q_lora_rank,
            "head_dim": self.head_dim,
            "qk_rope_head_dim": self.rope_dim,
            "rms_norm_eps": self.eps,
            "rope_scaling": {
                "type": "yarn",
                "factor": self.yarn_factor,
                "original_max_position_embeddings": self.yarn_original_context,
                "beta_fast": self.yarn_beta_fast,
                "beta_slow": self.yarn_beta_slow,
            },
            "rope_theta": self.rope_theta,
            "compress_rope_theta": self.compress_rope_theta,
            "compress_ratios": self.compress_ratios,
            "routed_scaling_factor": self.routed_scaling_factor,
            "scoring_func": "sqrtsoftplus",
            "sliding_window": self.window_size,
            "swiglu_limit": self.swiglu_clamp,
            "tie_word_embeddings": False,
            "topk_method": "noaux_tc",
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab_size,
            "expert_dtype": "fp4",
            "quantization_config": {
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "scale_fmt": "ue8m0",
                "weight_block_size": [128, 128],
            },
        }


PRESETS: dict[str, ModelConfig] = {
    "demo": ModelConfig(),
    # For tests of this code on a CPU; the text it writes is noise.
    "tiny": ModelConfig(
        n_layers=4,
        n_heads=2,
        head_dim=128,
        q_lora_rank=128,
        o_groups=1,
        o_lora_rank=128,
        hidden_size=128,
        index_n_heads=2,
        index_top_k=16,
        served_index_top_k=32,
        n_experts=4,
        n_experts_per_token=2,
        moe_intermediate_size=128,
    ),
}
