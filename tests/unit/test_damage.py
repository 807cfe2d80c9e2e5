"""A model whose weights are not finite: a typed error at the first step, and a session that is as it was."""

from __future__ import annotations

from pathlib import Path

import grebe
import numpy as np
import pytest

from tests.helpers.tiny_gguf import Shape, tiny_model


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        ("output_norm.weight", "logits"),
        ("blk.1.attn_kv_a_norm.weight", "kv_rows"),
        ("blk.2.ffn_down_exps.weight", "hidden state"),
    ],
)
@pytest.mark.parametrize("kernels", ["fast", "exact"])
def test_numbers_that_are_not_finite(tmp_path: Path, tensor: str, what: str, kernels: str) -> None:
    writer = tiny_model()
    t = writer.tensors[tensor]
    t.data = np.full(t.shape, np.nan, np.float32).tobytes()
    session = grebe.Model.load(writer.write(tmp_path / "damaged.gguf"), kernels=kernels).session()
    for call in (
        lambda: session.prefill([1, 2, 3]),
        lambda: session.decode(5),
        lambda: session.evaluate([5]),
    ):
        with pytest.raises(grebe.BackendError, match=f"{what}.*not finite"):
            call()
        assert (session.pos, session.tokens) == (0, [])


@pytest.mark.parametrize("kernels", ["fast", "exact"])
@pytest.mark.parametrize("kv_rounding", ["official", "off"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "tensor",
    [
        "attn_kv.weight",
        "attn_compressor_norm.weight",
        "attn_compressor_kv.weight",
        "indexer_compressor_norm.weight",
        "indexer_compressor_kv.weight",
        "indexer.proj.weight",
        "indexer.attn_q_b.weight",
    ],
)
def test_one_number_that_is_not_finite(
    tmp_path: Path, tensor: str, value: float, kv_rounding: str, kernels: str
) -> None:
    """Rounding to FP8 and FP4 must not turn it into a number; long enough for rows to be selected."""
    writer = tiny_model()
    t = writer.tensors[f"blk.1.{tensor}"]
    data = np.frombuffer(t.data, np.float32).copy()
    data[0] = value
    t.data = data.tobytes()
    path = writer.write(tmp_path / "damaged.gguf")
    session = grebe.Model.load(path, kernels=kernels, kv_rounding=kv_rounding).session()
    with pytest.raises(grebe.BackendError, match="not finite"):
        session.prefill(list(range(3, 60)))
    assert session.pos == 0


def test_one_damaged_expert_spares_the_others(tmp_path: Path) -> None:
    """Tokens that the hash layer sends elsewhere still work, before and after the failure."""
    writer = tiny_model(Shape(ratios=(0,)))
    t = writer.tensors["blk.0.ffn_down_exps.weight"]
    data = np.frombuffer(t.data, np.float32).reshape(t.shape).copy()
    data[0] = np.nan
    t.data = data.tobytes()
    table = np.frombuffer(writer.tensors["blk.0.ffn_gate_tid2eid.weight"].data, np.int32).reshape(
        -1, 2
    )
    good = [i for i in range(len(table)) if 0 not in table[i]]
    bad = next(i for i in range(len(table)) if 0 in table[i])
    model = grebe.Model.load(writer.write(tmp_path / "one.gguf"))
    session, twin = model.session(), model.session()
    session.prefill(good[:9])
    with pytest.raises(grebe.BackendError):
        session.decode(bad)
    with pytest.raises(grebe.BackendError):
        session.prefill([*good[:9], good[10], bad])
    assert session.pos == 9
    session.decode(good[9])
    twin.prefill(good[:10])
    assert np.array_equal(session.logits, twin.logits)


def test_heads_must_be_whole_vectors(tmp_path: Path) -> None:
    writer = tiny_model(Shape(head_dim=72, rope_dim=8))
    with pytest.raises(grebe.UnsupportedModelError, match=r"rope\.dimension_count"):
        grebe.Model.load(writer.write(tmp_path / "odd.gguf"))
