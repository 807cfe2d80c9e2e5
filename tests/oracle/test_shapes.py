"""Dimensions come from the file: models of odd shapes against the NumPy reference.

Every number of the architecture is varied: heads that fill no register, windows shorter than a chunk, other stream counts, ragged
groups, all layers of one kind, experts all used, no hash layer, no clamp.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import grebe
import numpy as np
import pytest

from tests.helpers import hf_to_gguf, reference
from tests.helpers.gguf_writer import GgufWriter
from tests.helpers.tiny_gguf import Shape, tiny_model

BASE = Shape()
SHAPES = {
    "base": BASE,
    "one_layer_plain": replace(BASE, ratios=(0,)),
    "all_ratio_4": replace(BASE, ratios=(4, 4, 4), hash_layers=3),
    "all_ratio_128": replace(BASE, ratios=(128, 128), hash_layers=0),
    "wide_heads": replace(BASE, heads=17, o_groups=1, head_dim=192, rope_dim=64, index_head_dim=64),
    "many_groups": replace(BASE, heads=6, o_groups=6, o_lora=5),
    "one_stream": replace(BASE, streams=1),
    "five_streams": replace(BASE, streams=5),
    "eight_streams": replace(BASE, streams=8),
    "window_200": replace(BASE, window=200),
    "window_1": replace(BASE, window=1),
    "index_64": replace(BASE, index_head_dim=64, index_heads=5, top_k=30),
    "all_experts": replace(BASE, experts=5, used=5),
    "one_expert": replace(BASE, experts=4, used=1, hash_layers=0),
    "odd_widths": replace(BASE, hidden=70, q_lora=37, ff=51, vocab=301),
    "no_clamp": replace(BASE, clamp=0.0),
    "tight_clamp": replace(BASE, clamp=0.3),
}


def reference_model(
    writer: GgufWriter, shape: Shape
) -> tuple[reference.Config, dict[str, np.ndarray]]:
    """The writer's F32 tensors under the checkpoint's names, and a config with its numbers."""
    keys = {k.removeprefix("deepseek4."): v for k, (_, v) in writer.keys.items()}
    config = {hf: keys[gguf] for gguf, hf in {**hf_to_gguf.INTS, **hf_to_gguf.FLOATS}.items()}
    config["compress_ratios"] = keys["attention.compress_ratios"]
    config["swiglu_limit"] = shape.clamp
    config["rope_theta"] = keys["rope.freq_base"]
    config["rope_scaling"] = {
        "factor": keys["rope.scaling.factor"],
        "original_max_position_embeddings": keys["rope.scaling.original_context_length"],
        "beta_fast": keys["rope.scaling.yarn_beta_fast"],
        "beta_slow": keys["rope.scaling.yarn_beta_slow"],
    }
    top = {v: k for k, v in hf_to_gguf.TOP.items()}
    layer = {v: k for k, v in hf_to_gguf.LAYER.items()}
    experts = {v: k for k, v in hf_to_gguf.EXPERTS.items()}
    weights = {}
    for name, t in writer.tensors.items():
        x = np.frombuffer(t.data, np.int32 if t.dtype == "I32" else np.float32).reshape(t.shape)
        x = x if t.dtype == "I32" else x.astype(np.float64)
        if not name.startswith("blk."):
            weights[top[name]] = x
            continue
        _, i, rest = name.split(".", 2)
        if rest in experts:
            for e in range(len(x)):
                weights[f"layers.{i}.ffn.experts.{e}.{experts[rest]}.weight"] = x[e]
        else:
            weights[f"layers.{i}.{layer[rest]}"] = x
    return reference.Config(config), weights


@pytest.mark.parametrize("name", SHAPES)
def test_shape(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    writer = tiny_model(shape, seed=sum(map(ord, name)))
    path = writer.write(tmp_path / "model.gguf")
    ids = np.random.default_rng(1).integers(0, shape.vocab, 290).tolist()
    config, weights = reference_model(writer, shape)
    for kv_rounding, qat in (("off", "none"), ("official", "official")):
        expected, _ = reference.forward(config, weights, ids, qat)
        model = grebe.Model.load(
            path, kernels="exact", kv_rounding=kv_rounding, n_threads=2, prefill_chunk=100
        )
        error = np.abs(model.session().evaluate(ids) - expected).max(1) / expected.std()
        if qat == "none":
            assert error.max() <= 3e-5, asdict(shape)
        else:  # discontinuous: a choice or a rounding may fall to the other side
            assert (error <= 3e-3).mean() >= 0.9, asdict(shape)


def test_reference_agrees_with_the_fixtures() -> None:
    """The twin in tests/helpers is the oracle that made the fixtures."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 128)).astype(np.float32)
    assert np.array_equal(reference.fp8_kv(x), grebe._engine.kv_round_trip(x, 0, "bf16")[0])
