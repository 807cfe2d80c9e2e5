"""Models that the tests run: oracle fixtures as GGUF files, loaded once and shared."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import grebe
import numpy as np
from numpy.typing import NDArray

from . import hf_to_gguf

VECTORS = Path(__file__).parent.parent / "vectors" / "oracle"
FIXTURES = ("tiny_a", "tiny_b", "tiny_fp4", "tiny_gguf")
_scratch = tempfile.TemporaryDirectory(prefix="grebe-tests-")


@functools.cache
def fixture_path(name: str) -> Path:
    """GGUF file of a fixture; the safetensors ones are converted on first use."""
    folder = VECTORS / name
    if (folder / "model.gguf").exists():
        return folder / "model.gguf"
    out = Path(_scratch.name) / f"{name}.gguf"
    hf_to_gguf.convert(folder).write(out)
    return out


@functools.cache
def load(
    name: str,
    kv_rounding: str = "official",
    kernels: str = "fast",
    n_threads: int = 2,
    isa: str | None = None,
    prefill_chunk: int = 512,
) -> grebe.Model:
    """A fixture, or ``embedded``, on the CPU."""
    return grebe.Model.load(
        None if name == "embedded" else fixture_path(name),
        backend="cpu",
        kv_rounding=kv_rounding,
        kernels=kernels,
        n_threads=n_threads,
        isa=isa,
        prefill_chunk=prefill_chunk,
    )


def tokens(name: str) -> list[int]:
    """The fixture's tokens."""
    return list(json.loads((VECTORS / name / "input_ids.json").read_text()))


def expected(name: str, mode: str) -> NDArray[np.float32]:
    """Oracle logits f32[T, vocab]; mode is ``none`` or ``qat``."""
    logits: NDArray[np.float32] = np.load(VECTORS / name / f"logits_{mode}.npy")
    return logits
