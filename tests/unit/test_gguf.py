"""The GGUF loader, seen through tests/native/gguf_info.cpp: what loads, what is refused and how."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import tiny_gguf
from gguf_writer import GgufWriter
from hf_to_gguf import convert
from tiny_gguf import Shape, tiny_model

ROOT = Path(__file__).parents[2]
SOURCES = ["io/mapped_file", "io/gguf", "model/config", "model/weights", "model/fingerprint"]
P = "deepseek4."

Load = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def gguf_info(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program: from GREBE_NATIVE_DIR, else compiled here (a few files, no dependencies)."""
    if folder := os.environ.get("GREBE_NATIVE_DIR"):
        return Path(folder) / "gguf_info"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler and no GREBE_NATIVE_DIR")
    program = tmp_path_factory.mktemp("native") / "gguf_info"
    sources = [str(ROOT / f"csrc/{s}.cpp") for s in SOURCES]
    main = str(ROOT / "tests/native/gguf_info.cpp")
    command = [compiler, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", main, *sources, "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.fixture
def load(gguf_info: Path, tmp_path: Path) -> Load:
    """Write a model (or bytes, or take a path) and return what the loader says."""

    def run(model: GgufWriter | bytes | Path) -> dict[str, Any]:
        path = model if isinstance(model, Path) else tmp_path / "m.gguf"
        if isinstance(model, GgufWriter):
            model.write(path)
        elif isinstance(model, bytes):
            path.write_bytes(model)
        done = subprocess.run([gguf_info, path], capture_output=True, check=False)
        assert done.returncode in (0, 3), done
        result = json.loads(done.stdout)
        assert ("error" in result) == (done.returncode == 3)
        return result

    return run


def refused(load: Load, model: GgufWriter | bytes | Path, kind: str, *parts: str) -> None:
    """The loader refuses with this class, and the message has all parts."""
    result = load(model)
    assert result.get("error") == kind, result
    for part in parts:
        assert part in result["message"], result["message"]


# ---------------------------------------- sound files


def test_numbers_of_the_model(load: Load) -> None:
    s = Shape()
    got = load(tiny_model())
    assert got["n_tensors"] == len(tiny_model().tensors)
    assert (got["version"], got["shards"], got["name"]) == (3, 1, "tiny")
    assert got["compress_ratios"] == list(s.ratios)
    assert got["n_hash_layers"] == 1
    assert (got["hidden_size"], got["vocab_size"], got["max_context"]) == (s.hidden, s.vocab, 4096)
    assert got["swiglu_clamp"] == got["swiglu_clamp_shared"] == [10, 10, 10]
    assert got["ignored"] == []


def test_version_2_and_other_alignment(load: Load) -> None:
    w = tiny_model()
    w.version = 2
    assert load(w)["version"] == 2
    w = tiny_model()
    w.alignment = 4096
    w.add("general.alignment", 4096)
    assert load(w)["n_layers"] == 3


def test_absent_keys_come_from_the_tensors(load: Load) -> None:
    w = tiny_model()
    full = load(w)
    kept = ("o", "rope.dimension_count", "attention.output", "attention.sliding", "expert_used")
    for key in [k for k in w.keys if k.startswith(P)]:
        if not key.removeprefix(P).startswith(kept) and "indexer.top_k" not in key:
            del w.keys[key]
    w.add(P + "context_length", 4096)
    sparse = load(w)
    for result in (full, sparse):
        for name in ("load_ms", "fingerprint_ms", "n_keys", "file_bytes"):
            del result[name]
    assert sparse == full


def test_no_architecture_but_our_keys(load: Load) -> None:
    w = tiny_model()
    del w.keys["general.architecture"]
    assert load(w)["n_layers"] == 3


@pytest.mark.parametrize("kind", ["f32", "f64", "u32", "i32"])
def test_floats_in_any_number_type(load: Load, kind: str) -> None:
    w = tiny_model()
    w.add(P + "rope.freq_base", 20000, kind)
    assert load(w)["rope_theta"] == 20000


def test_clamp_scalar_and_shared(load: Load) -> None:
    w = tiny_model()
    w.add(P + "swiglu_clamp_exp", 7.0)
    w.add(P + "swiglu_clamp_shexp", [1.0, 0.0, 3.0, 4.0], "array:f64")
    got = load(w)
    assert (got["swiglu_clamp"], got["swiglu_clamp_shared"]) == ([7, 7, 7], [1, 0, 3])


def test_shared_bytes_and_shuffled_directory(load: Load) -> None:
    w = tiny_model()
    names = list(w.tensors)
    w.tensors = {n: w.tensors[n] for n in reversed(names)}
    w.tensors.pop("blk.2.ffn_up_exps.weight")
    w.add_alias("blk.2.ffn_up_exps.weight", "blk.2.ffn_gate_exps.weight")
    assert load(w)["n_tensors"] == len(names)


def test_fingerprint(load: Load) -> None:
    """It follows the weights and the numbers, not the file around them."""
    base = load(tiny_model())["fingerprint"]
    assert len(base) == 64
    w = tiny_model()
    w.add("general.name", "another name")
    w.add("tokenizer.chat_template", "x" * 1000)
    w.tensors = dict(reversed(w.tensors.items()))
    assert load(w)["fingerprint"] == base
    seen = {
        base,
        load(tiny_model(seed=2))["fingerprint"],
        load(tiny_model(dtype="F16"))["fingerprint"],
    }
    w = tiny_model()
    w.add(P + "expert_weights_scale", 2.5)
    seen.add(load(w)["fingerprint"])
    for name in ("blk.1.ffn_up_exps.weight", "blk.2.attn_sinks.weight", "output.weight"):
        w = tiny_model()
        w.tensors[name].data = w.tensors[name].data[:-1] + b"\x01"
        seen.add(load(w)["fingerprint"])
    assert len(seen) == 7


def test_bytes_per_token(load: Load) -> None:
    w = tiny_model()
    s = Shape()
    expected = 4 * s.hidden + 4 * s.used  # an embedding row, a row of the expert table
    for name, t in w.tensors.items():
        vector = len(t.shape) == 1 or name.endswith("ape.weight")
        if vector or name.endswith(("token_embd.weight", "tid2eid.weight")):
            continue
        expected += len(t.data) // s.experts * s.used if "exps" in name else len(t.data)
    got = load(w)
    assert got["bytes_per_token"] == expected
    assert got["total_bytes"] == sum(len(t.data) for t in w.tensors.values())


def test_types_of_vectors_and_matrices(load: Load) -> None:
    for kind in ("F16", "BF16"):
        w = tiny_model()
        for name, t in list(w.tensors.items()):
            if t.dtype == "F32":
                w.add_tensor(name, np.frombuffer(t.data, np.float32).reshape(t.shape), kind)
        assert load(w)["types"]["q_a"] == kind
    w.add_tensor("blk.0.attn_kv.weight", np.ones((80, 32), np.float32), "Q8_0")
    assert "error" not in load(w)
    w.add_tensor("blk.0.attn_norm.weight", np.ones(32, np.float32), "Q8_0")
    refused(load, w, "UnsupportedModel", "blk.0.attn_norm.weight", "Q8_0", "F32, F16, BF16")


def test_names_without_suffix_and_grouped_rows(load: Load) -> None:
    expected = load(tiny_model())
    w = tiny_model()
    for name, t in list(w.tensors.items()):
        short = name.removesuffix(".weight").removesuffix(".bias")
        del w.tensors[name]
        shape = (2, 16, 80) if name.endswith("attn_output_a.weight") else t.shape
        w.add_raw(short, t.dtype, shape, t.data)
    for key in ("vocab_size", "hash_layer_count", "hyper_connection.count"):
        del w.keys[P + key]
    got = load(w)
    for name in ("ignored", "vocab_size", "n_hash_layers", "hc_mult", "bytes_per_token"):
        assert got[name] == expected[name], name


def test_pruned_experts(load: Load) -> None:
    w = tiny_model()
    for part in ("gate", "up", "down"):
        name = f"blk.1.ffn_{part}_exps.weight"
        w.add_tensor(name, np.zeros((2, 32, 32), np.float32))
    refused(load, w, "UnsupportedModel", "ffn_gate_inp.weight", "[32, 3]", "[32, 2]")
    w.add_tensor("blk.1.ffn_gate_inp.weight", np.zeros((2, 32), np.float32))
    w.add_tensor("blk.1.exp_probs_b.bias", np.zeros(2, np.float32))
    got = load(w)
    assert (got["layer_experts"], got["n_experts"]) == ([3, 2, 3], 3)


def test_draft_layers_are_ignored_and_counted(load: Load) -> None:
    w = tiny_model()
    w.add(P + "nextn_predict_layers", 1)
    assert load(w)["n_mtp_layers"] == 0  # the key alone means nothing
    # llama.cpp: one more block, counted in block_count
    w.add(P + "block_count", 4, "u32")
    w.add(P + "attention.compress_ratios", [0, 4, 128, 0], "array:u32")
    w.add_tensor("blk.3.nextn.eh_proj.weight", np.zeros((32, 64), np.float32))
    w.add_tensor("blk.3.attn_norm.weight", np.zeros(32, np.float32))
    got = load(w)
    assert (got["n_layers"], got["n_mtp_layers"]) == (3, 1)
    assert got["ignored"] == ["blk.3.nextn.eh_proj.weight", "blk.3.attn_norm.weight"]
    # names of the checkpoint, in a type that nobody knows
    w = tiny_model()
    for i in range(3):
        w.add_raw(f"mtp.{i}.e_proj.weight", 777, (3, 5), b"x")
    w.add_raw("visual.patch.weight", 778, (3, 5), b"x")
    got = load(w)
    assert (got["n_layers"], got["n_mtp_layers"], len(got["ignored"])) == (3, 3, 4)


def test_fp8_pair(load: Load) -> None:
    w = tiny_model(Shape(hidden=160))
    name = "blk.0.attn_q_a.weight"
    codes, scales = np.zeros((32, 160), np.uint8), np.full((1, 2), 127, np.uint8)
    w.add_fp8(name, codes, scales)
    assert load(w)["types"]["q_a"] == "F8_E4M3"
    stack = np.zeros((3, 32, 160), np.uint8)
    w.add_fp8("blk.0.ffn_gate_exps.weight", stack, np.zeros((3, 1, 2), np.uint8))
    assert load(w)["types"]["gate_exps"] == "F8_E4M3"
    w.add_tensor("blk.0.attn_q_a.scale", np.zeros((2, 1), np.uint8), "I8")
    refused(load, w, "UnsupportedModel", "attn_q_a.scale", "[1, 2]", "expected [2]")
    w.add_tensor("blk.0.attn_q_a.scale", scales, "F32")
    refused(load, w, "UnsupportedModel", "attn_q_a.scale", "F32", "I8")
    del w.tensors["blk.0.attn_q_a.scale"]
    refused(load, w, "UnsupportedModel", "without scales", "blk.0.attn_q_a.scale")


def test_checkpoint_conversion(load: Load, tmp_path: Path) -> None:
    """An FP8 and an FP4 tensor through the converter come out in the layouts of the loader."""
    codes = np.arange(256, dtype=np.uint8).reshape(4, 64)
    stored = {
        "layers.0.attn.wq_a.weight": ("F8_E4M3", codes),
        "layers.0.attn.wq_a.scale": ("F8_E8M0", np.full((1, 1), 130, np.uint8)),
        "layers.0.ffn.experts.0.w1.weight": ("I8", codes),
        "layers.0.ffn.experts.0.w1.scale": ("F8_E8M0", np.full((4, 4), 120, np.uint8)),
    }
    head, data = {}, b""
    for name, (kind, x) in stored.items():
        span = [len(data), len(data) + x.nbytes]
        head[name] = {"dtype": kind, "shape": x.shape, "data_offsets": span}
        data += x.tobytes()
    text = json.dumps(head).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"num_hidden_layers": 1, "n_routed_experts": 1, "compress_ratios": [0]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    w = convert(tmp_path)
    assert w.tensors["blk.0.attn_q_a.weight"].data == codes.tobytes()
    assert w.tensors["blk.0.attn_q_a.scale"].data == b"\x82"
    block = w.tensors["blk.0.ffn_gate_exps.weight"]
    assert (block.dtype, block.shape) == ("MXFP4", (1, 4, 128))
    # Byte j holds the codes j and 0: element 2j is j, element 2j+1 is 0. GGUF pairs j with j+16.
    expected = bytes((j // 2 | (j // 2 + 8) << 4) if j % 2 == 0 else 0 for j in range(16))
    assert block.data[:17] == b"\x78" + expected


# ---------------------------------------- shards


def test_shards(load: Load, tmp_path: Path) -> None:
    paths = tiny_model().write_shards(tmp_path, "tiny", 3)
    got = load(paths[0])
    assert (got["shards"], got["n_tensors"]) == (3, len(tiny_model().tensors))
    refused(load, paths[2], "UnsupportedModel", "shard 3 of 3", paths[0].name)
    paths[1].rename(tmp_path / "elsewhere")
    refused(load, paths[0], "IoError", paths[1].name, "No such file", "shard 2 of 3")
    shutil.copy(paths[2], paths[1])
    refused(load, paths[0], "FormatError", paths[1].name, "shard 3 of 3")


def test_shard_must_be_named_like_one(load: Load, tmp_path: Path) -> None:
    path = tiny_model().write_shards(tmp_path, "tiny", 2)[0]
    refused(load, path.rename(tmp_path / "m.gguf"), "FormatError", "-00001-of-00002.gguf")


def test_shards_without_all_tensors(load: Load, tmp_path: Path) -> None:
    paths = tiny_model().write_shards(tmp_path, "tiny", 2)
    other = GgufWriter()
    other.add("split.no", 1, "u16")
    other.add("split.count", 2, "u16")
    other.write(paths[1])
    refused(load, paths[0], "FormatError", "split.tensors.count")


# ---------------------------------------- other models


@pytest.mark.parametrize(
    ("architecture", "parts"),
    [
        ("deepseek41", ("V4.1 Flash", "another architecture")),
        ("deepseek4_mtp_support", ("MTP sidecar", "load the main file")),
        ("llama", ("a 'llama' model named 'tiny'", "'deepseek4'")),
        ("x\x01\n" + "y" * 500, ("'x??yyy", "...'")),
    ],
)
def test_other_architectures(load: Load, architecture: str, parts: tuple[str, ...]) -> None:
    w = tiny_model()
    w.add("general.architecture", architecture)
    refused(load, w, "UnsupportedModel", *parts)


def test_not_our_keys(load: Load) -> None:
    w = GgufWriter()
    w.add("general.name", "thing")
    refused(load, w, "UnsupportedModel", "neither general.architecture nor any deepseek4")
    w.add("general.type", "imatrix")
    refused(load, w, "UnsupportedModel", "general.type is 'imatrix'")


def test_dspark_sidecar_under_the_main_name(load: Load) -> None:
    w = GgufWriter()
    w.add("general.architecture", "deepseek4")
    w.add_tensor("mtp.0.main_proj.weight", np.zeros((4, 4), np.float32))
    refused(load, w, "UnsupportedModel", "only draft layers", "main file")


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("block_count", 0, ("block_count is 0", "1 to 512")),
        ("block_count", 513, ("block_count is 513",)),
        ("embedding_length", 1 << 40, ("embedding_length", "65536")),
        ("vocab_size", -1, ("vocab_size is -1",)),
        ("vocab_size", 265, ("token_embd.weight", "[32, 264]", "[32, 265]", "vocab_size is 265")),
        ("embedding_length", 64, ("token_embd.weight", "embedding_length is 64")),
        ("attention.head_count", 4, ("deepseek4.attention.head_count",)),
        ("attention.head_count_kv", 2, ("head_count_kv is 2",)),
        ("attention.value_length", 64, ("value_length is 64", "key_length 80")),
        ("attention.key_length", 112, ("value_length is 80", "key_length 112")),
        ("rope.dimension_count", 15, ("rope.dimension_count is 15", "multiples of 16")),
        ("rope.dimension_count", 80, ("rope.dimension_count is 80",)),
        ("rope.freq_base", 0.0, ("rope.freq_base is 0",)),
        ("rope.freq_base", float("nan"), ("rope.freq_base is nan",)),
        ("rope.scaling.type", "linear", ("'linear'", "'yarn'")),
        ("attention.output_group_count", 3, ("output_group_count is 3", "divisors")),
        ("attention.sliding_window", 0, ("sliding_window is 0",)),
        ("attention.sliding_window", 65537, ("sliding_window is 65537",)),
        ("attention.indexer.key_length", 48, ("indexer.key_length is 48", "power of two")),
        ("attention.indexer.key_length", 64, ("indexer",)),
        ("attention.compress_ratios", [0, 4], ("2 long", "3 layers")),
        ("attention.compress_ratios", [0, 4, 16], ("compress_ratios[2] is 16",)),
        ("attention.compress_ratios", [0, 0, 128], ("compress_ratios[1] is 0", "blk.1.")),
        ("attention.compress_ratios", [0, 128, 128], ("compress_ratios[1]", "indexer")),
        ("attention.compress_ratios", [4, 4, 128], ("compress_ratios[0] is 4", "is absent")),
        ("hyper_connection.count", 9, ("hyper_connection.count is 9", "1 to 8")),
        ("hyper_connection.count", 4, ("output_hc_fn.weight", "hyper_connection.count")),
        ("expert_count", 2, ("expert_count is 2", "blk.0.ffn_gate_exps.weight")),
        ("expert_used_count", 0, ("expert_used_count is 0",)),
        ("expert_used_count", 65, ("expert_used_count is 65",)),
        ("expert_used_count", 4, ("expert_used_count is 4", "expert_count 3")),
        ("expert_used_count", 1, ("tid2eid", "expert_used_count is 1")),
        ("expert_shared_count", 2, ("expert_shared_count is 2",)),
        ("expert_group_count", 1, ("expert_group_count is 1",)),
        ("expert_gating_func", 2, ("expert_gating_func is 2",)),
        ("expert_weights_norm", False, ("expert_weights_norm is 0",)),
        ("hash_layer_count", 2, ("hash_layer_count is 2", "blk.1.ffn_gate_tid2eid")),
        ("hash_layer_count", 0, ("hash_layer_count is 0", "blk.0.ffn_gate_tid2eid")),
        ("swiglu_clamp_exp", [1.0, 2.0], ("swiglu_clamp_exp is 2 long",)),
        ("swiglu_clamp_exp", -1.0, ("swiglu_clamp_exp is -1",)),
        ("expert_feed_forward_length", [32, 32, 64], ("different by layer",)),
    ],
)
def test_keys_that_contradict(load: Load, key: str, value: Any, parts: tuple[str, ...]) -> None:
    w = tiny_model()
    w.add(P + key, value)
    refused(load, w, "UnsupportedModel", *parts)


def test_width_of_the_packed_cache(load: Load) -> None:
    w = tiny_model(Shape(head_dim=112))
    refused(load, w, "UnsupportedModel", "key_length is 112", "16 plus a multiple of 64")


def test_key_of_the_wrong_type(load: Load) -> None:
    w = tiny_model()
    w.add(P + "block_count", "three")
    refused(load, w, "FormatError", "'deepseek4.block_count' is string", "integers")
    w.add(P + "block_count", 2.5)
    refused(load, w, "FormatError", "'deepseek4.block_count' is f32")
    w.add(P + "block_count", [[3]], "array:array:u32")
    refused(load, w, "FormatError", "'deepseek4.block_count' is array of array")


def test_every_tensor_is_needed(load: Load) -> None:
    names = list(tiny_model().tensors)
    for name in names:
        w = tiny_model()
        del w.tensors[name]
        result = load(w)
        assert result["error"] == "UnsupportedModel", name
        assert name in result["message"], result["message"]


def test_every_shape_is_checked(load: Load) -> None:
    for name, t in tiny_model().tensors.items():
        w = tiny_model()
        w.add_raw(name, t.dtype, (t.shape[0] + 1, *t.shape[1:]), t.data + t.data)
        result = load(w)
        assert result.get("error") == "UnsupportedModel", name
        assert "tensor '" in result["message"], result["message"]


@pytest.mark.parametrize(
    ("number", "size", "found"),
    [(2, 18, "Q4_0 (type 2)"), (20, 18, "IQ4_NL (type 20)"), (99, 1, "unknown (type 99)")],
)
def test_types_without_a_kernel(load: Load, number: int, size: int, found: str) -> None:
    w = tiny_model()
    w.add_raw("blk.1.ffn_down_exps.weight", number, (3, 32, 32), b"\0" * (3 * 32 * size))
    name = "tensor 'blk.1.ffn_down_exps.weight' is " + found
    refused(load, w, "UnsupportedModel", name, "this build reads F32, F16")


def test_expert_table_values(load: Load) -> None:
    for bad in (3, -1):
        w = tiny_model()
        table = np.zeros((264, 2), np.int32)
        table[263, 1] = bad
        w.add_tensor("blk.0.ffn_gate_tid2eid.weight", table, "I32")
        refused(load, w, "FormatError", f"names expert {bad}", "the layer has 3")


def test_special_ids_must_be_tokens(load: Load) -> None:
    w = tiny_model()
    w.add("tokenizer.ggml.eos_token_id", 264)
    refused(load, w, "UnsupportedModel", "eos_token_id is 264", "0 to 263")


# ---------------------------------------- lies


@pytest.mark.parametrize(
    ("content", "kind", "part"),
    [
        (b"", "FormatError", "empty"),
        (b"GGU", "FormatError", "magic needs 4 bytes, 3 are left"),
        (b"ggjt" * 8, "FormatError", "'ggjt', expected 'GGUF'"),
        (b"version https://git-lfs.github.com/spec/v1", "FormatError", "Git LFS"),
        (b"<!doctype html>" * 3, "FormatError", "web page"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "UnsupportedModel", "version 1"),
        (struct.pack("<4sIQQ", b"GGUF", 4, 0, 0), "UnsupportedModel", "version 4"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "UnsupportedModel", "big-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 63, 0), "FormatError", "tensors do not fit"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 63), "FormatError", "keys do not fit"),
    ],
)
def test_header(load: Load, content: bytes, kind: str, part: str) -> None:
    refused(load, content, kind, part)


def test_no_file(load: Load, tmp_path: Path) -> None:
    refused(load, tmp_path / "absent.gguf", "IoError", "absent.gguf", "No such file")
    refused(load, tmp_path, "FormatError", "not a regular file")


def key_bytes(kind: int, value: bytes, key: bytes = b"k") -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def file_with(*keys: bytes, pad: int = 64) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(keys)) + b"".join(keys) + b"\0" * pad


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (file_with(key_bytes(13, b"")), "value type 13 does not exist"),
        (file_with(key_bytes(8, struct.pack("<Q", 1 << 63))), "string needs 9223372036854775808"),
        (file_with(struct.pack("<Q", (1 << 64) - 8)), "key needs 18446744073709551608"),
        (file_with(key_bytes(9, struct.pack("<IQ", 4, 1 << 62))), "array of 4611686018427387904"),
        (file_with(key_bytes(9, struct.pack("<IQ", 8, 1 << 61))), "array of 2305843009213693952"),
        (file_with(key_bytes(9, struct.pack("<IQ", 9, 1) * 6)), "nested deeper"),
        (file_with(key_bytes(4, b"\0" * 4), key_bytes(4, b"\0" * 4)), "'k' appears twice"),
        (
            file_with(key_bytes(4, struct.pack("<I", 24), b"general.alignment")),
            "general.alignment is 24",
        ),
        (
            file_with(key_bytes(4, struct.pack("<I", 0), b"general.alignment")),
            "general.alignment is 0",
        ),
    ],
)
def test_lying_keys(load: Load, content: bytes, part: str) -> None:
    refused(load, content, "FormatError", "byte ", part)


def tensor_bytes(
    dims: tuple[int, ...], kind: int = 0, offset: int = 0, name: bytes = b"t", n_dims: int = -1
) -> bytes:
    head = struct.pack("<Q", len(name)) + name
    head += struct.pack("<I", len(dims) if n_dims < 0 else n_dims)
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        (tensor_bytes((), n_dims=0), "has 0 dimensions"),
        (tensor_bytes((1,) * 5), "has 5 dimensions"),
        (tensor_bytes((4, 0)), "empty dimension"),
        (tensor_bytes((1 << 32, 1 << 32)), "too large"),
        (tensor_bytes((1 << 62,)), "too large"),
        (tensor_bytes((1 << 40,)), "ends past the file"),
        (tensor_bytes((33,), kind=8), "not whole blocks of 32 (Q8_0)"),
        (tensor_bytes((1,), offset=8), "not a multiple of general.alignment 32"),
        (tensor_bytes((1,), offset=1 << 40), "ends past the file"),
        (tensor_bytes((1,), offset=(1 << 64) - 32), "ends past the file"),
        (tensor_bytes((1,), name=b""), "without a name"),
    ],
)
def test_lying_tensors(load: Load, tensor: bytes, part: str) -> None:
    content = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + tensor + b"\0" * 64
    refused(load, content, "FormatError", part)


def test_tensor_named_twice(load: Load) -> None:
    content = struct.pack("<4sIQQ", b"GGUF", 3, 2, 0) + tensor_bytes((1,)) * 2 + b"\0" * 64
    refused(load, content, "FormatError", "'t' appears twice")


def test_truncated_download(load: Load) -> None:
    content = tiny_model().to_bytes()
    refused(load, content[:-64], "FormatError", "is the download complete?")


def test_sparse_terabyte(load: Load, tmp_path: Path) -> None:
    """A file that really is a terabyte long (of nothing) is refused as quickly as a small one."""
    path = tmp_path / "m.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, (1 << 40) // 64, 0))
    try:
        os.truncate(path, 1 << 40)
    except OSError:
        pytest.skip("the file system has no sparse files of this size")
    refused(load, path, "FormatError", "tensor without a name")


def test_helper_writes_every_layer_once() -> None:
    names = tiny_gguf.layer_shapes(Shape(), 1)
    assert sum(n.startswith("indexer") for n in names) == 6
