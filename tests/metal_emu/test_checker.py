"""The checker finds every class of defect at its line, and nothing in the sound variants."""

from __future__ import annotations

import re

import numpy as np
import pytest

from .compiler import CompileError
from .conftest import KERNELS
from .library import IMMUTABLE, READ_ONLY, KernelError, Library, forget, reports

SOURCE = (KERNELS / "defects.metal").read_text()


def marked_lines(kernel: str) -> set[int]:
    """Lines of the kernel that carry HERE."""
    begin = SOURCE.index(f"kernel void {kernel}(")
    first = SOURCE.count("\n", 0, begin) + 1
    body = SOURCE[begin : SOURCE.index("\n}\n", begin)].splitlines()
    return {first + i for i, line in enumerate(body) if "// HERE" in line}


def check(found: list[str], kernel: str, expected: str) -> None:
    """The expected finding is there, at a marked line, and so are all others."""
    places = [re.match(r".*kernels/defects\.metal:(\d+): ", finding) for finding in found]
    lines = {int(place.group(1)) for place in places if place}
    assert any(expected in finding for finding in found), found
    assert all(places), found
    assert lines <= marked_lines(kernel), found


@pytest.fixture
def run(library):
    """run(kernel, threads, ...) with x = buffer 0 where there is one, and y last; gives findings."""

    def run_kernel(
        kernel: str, threads: int, buffers: int = 1, groups: int = 1, n: int = 512, **options
    ):
        x, y = np.ones(256, np.float32), np.zeros(n, np.float32)
        bound = {0: y} if buffers == 1 else {0: x, 1: y}
        library("defects", True).run(kernel, bound, groups, threads, **options)
        return reports()

    return run_kernel


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("kernel", "threads", "options"),
    [
        ("ok_reduce", 256, {"buffers": 2}),
        ("ok_flag_for_device", 256, {}),
        ("ok_write_after_read", 256, {}),
        ("ok_simdgroup_barrier", 32, {}),
        ("tally", 64, {"groups": 4}),
        ("increment", 64, {"groups": 4}),
    ],
)
def test_sound_kernels(run, kernel, threads, options, seed):
    assert run(kernel, threads, seed=seed, **options) == []


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("kernel", "threads", "expected", "options"),
    [
        ("no_barrier", 256, "race on threadgroup memory", {"buffers": 2}),
        ("wrong_flag", 256, "race on threadgroup memory", {"buffers": 2}),
        ("wrong_flag_for_device", 256, "race on device memory", {}),
        ("write_after_read", 256, "race on device memory", {}),
        ("across_threadgroups", 1, "race on device memory: write after an unordered write", {"groups": 4}),
        ("lock_step", 32, "race on threadgroup memory", {}),
        ("simdgroup_barrier_for_threadgroup", 64, "race on threadgroup memory", {}),
        ("reuse", 32, "race on threadgroup memory", {}),
        ("read_past_end", 256, "out-of-bounds read of 4 bytes (nearest: buffer 0, at byte 1024)", {"buffers": 2}),
        ("read_past_end_in_a_loop", 1, "out-of-bounds read of 4 bytes (nearest: buffer 0, at byte 1024)", {"buffers": 2}),
        ("past_end_of_threadgroup_memory", 256, " of 512) [kernel past_end", {"threadgroup_bytes": 512}),
        ("write_to_read_only", 64, "write to read-only buffer 0", {"read_only": {0}}),
        ("write_to_read_only", 64, "write to read-only buffer 0", {"immutable": {0}}),
        ("cast_away_const", 64, "write to read-only buffer 0", {}),
        ("unwritten", 64, "read of threadgroup memory never written", {}),
        ("unwritten_sum", 64, "read of threadgroup memory never written", {}),
        ("unwritten_device", 64, "read of device memory never written (buffer 0)", {"unwritten": {0}}),
        ("barrier_after_return", 256, "threadgroup_barrier after 56 of 256 threads have returned", {}),
        ("two_barriers", 256, "threads wait at different threadgroup barriers", {}),
        ("different_collectives", 32, "wait at different collectives", {}),
        ("part_of_a_matrix", 32, "simdgroup matrix multiplication with 16 of 32 lanes", {"buffers": 2}),
        ("part_of_a_barrier", 32, "simdgroup_barrier with 16 of 32 lanes", {}),
        ("unset_constant", 1, "function constant 9 (kUnset) is used but not set", {}),
    ],
)  # fmt: skip
def test_defects(run, kernel, threads, expected, options, seed):
    check(run(kernel, threads, seed=seed, **options), kernel, expected)


@pytest.mark.parametrize(
    ("kernel", "threads", "expected"),
    [
        ("write_past_end", 64, "out-of-bounds write of 4 bytes (nearest: buffer 0, at byte 256)"),
        ("crash", 1, "the kernel crashed: division by zero"),
    ],
)
def test_a_kernel_is_stopped(library, kernel, threads, expected):
    """Before it does harm; the process and the next dispatch are well."""
    y, zero = np.zeros(64, np.float32), np.zeros(1, np.uint32)
    buffers = {0: y, 1: zero}
    with pytest.raises(KernelError, match=f"kernel {kernel} was stopped"):
        library("defects", True).run(kernel, buffers, 1, threads)
    check(reports()[:-1], kernel, expected)
    library("defects", True).run("fill", buffers, 1, 64)
    assert y.tolist() == [1] * 64


def test_a_wild_address_stops_even_unchecked_kernels(library):
    addresses = np.array([16], np.uint64)
    with pytest.raises(KernelError, match="write_through was stopped"):
        library("language").run("write_through", {0: addresses}, 1, 1)
    assert any("the kernel crashed: invalid access at address 0x10" in line for line in reports())


WIDTHS = """#include <metal_stdlib>
using namespace metal;
struct Twelve { uint v[12]; };
template <typename T>
kernel void copy(device const T* x [[buffer(0)]], device T* y [[buffer(1)]]) { y[0] = x[0]; }
#define COPY(T) template [[host_name("copy_" #T)]] kernel decltype(copy<T>) copy<T>;
COPY(Twelve) COPY(float4x4) COPY(float3) COPY(packed_float3) COPY(uchar3) COPY(half3) COPY(long2)
kernel void copy_matrix(device const float* x [[buffer(0)]], device float* y [[buffer(1)]]) {
  simdgroup_float8x8 m;
  simdgroup_load(m, x, 8);
  simdgroup_store(m, y, 8);
}
"""


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("Twelve", 48),
        ("float4x4", 64),
        ("float3", 16),
        ("packed_float3", 12),
        ("uchar3", 4),
        ("half3", 8),
        ("long2", 16),
        ("matrix", 256),
    ],
)
def test_the_last_byte_of_every_type(name, n_bytes):
    kernels = Library(WIDTHS, race=True)
    threads = 32 if name == "matrix" else 1
    x, y = np.ones(n_bytes, np.uint8), np.zeros(n_bytes, np.uint8)
    kernels.run(f"copy_{name}", {0: x, 1: y}, 1, threads)
    assert reports() == []
    kernels.run(f"copy_{name}", {0: x[:-1], 1: y}, 1, threads)
    assert "out-of-bounds read" in reports()[0]
    with pytest.raises(KernelError, match="stopped"):
        kernels.run(f"copy_{name}", {0: x, 1: y[:-1]}, 1, threads)
    assert "out-of-bounds write" in reports()[0]


def test_what_the_checker_cannot_see_is_refused():
    text = "#include <metal_stdlib>\nkernel void k(device ulong4* y [[buffer(0)]]) { y[0] = 1; }\n"
    with pytest.raises(CompileError, match=r"text\.metal:2: error: the checker cannot see ulong4"):
        Library(text, race=True)


# ---- addresses in tables ----


def test_indirect_memory_is_bounded(library):
    kernels = library("language", True)
    line = next(
        i + 1
        for i, text in enumerate((KERNELS / "language.metal").read_text().splitlines())
        if "*(device float*)addresses[i] = 1.0f" in text
    )
    target = np.zeros(4, np.float32)
    addresses = np.array([target.ctypes.data + 4], np.uint64)
    kernels.run("write_through", {0: addresses}, 1, 1, indirect=[(target[1:2], 0)])
    assert reports() == []
    with pytest.raises(KernelError, match="stopped"):
        kernels.run("write_through", {0: addresses}, 1, 1, indirect=[(target[2:], 0)])
    with pytest.raises(KernelError, match="stopped"):  # no range at all
        kernels.run("write_through", {0: addresses}, 1, 1)
    found = [text for text in reports() if "stopped" not in text]
    assert len(found) == 1  # one site
    assert f"kernels/language.metal:{line}: out-of-bounds write of 4 bytes" in found[0]
    for access in (READ_ONLY, IMMUTABLE):
        kernels.run("write_through", {0: addresses}, 1, 1, indirect=[(target, access)])
        assert "write to read-only indirect memory" in reports()[0]


# ---- several dispatches ----


def test_a_missing_barrier_between_dispatches(library):
    kernels = library("defects", True)
    y, z = np.zeros(64, np.float32), np.zeros(64, np.float32)
    kernels.run("fill", {0: y}, 1, 64, hazard=1)
    kernels.run("use", {0: y, 1: z}, 1, 64, hazard=2)
    kernels.run("increment", {0: y}, 1, 64, hazard=3)
    assert reports() == []

    kernels.run("fill", {0: y}, 1, 64, hazard=4)
    kernels.run("use", {0: y, 1: z}, 1, 64, hazard=4)
    check(reports(), "use", "read after an unordered write of another dispatch: a memory barrier")
    # The write is found too, although its own dispatch read the same place in between.
    kernels.run("use", {0: y, 1: z}, 1, 64, hazard=5)
    kernels.run("increment", {0: y}, 1, 64, hazard=5)
    check(reports(), "increment", "write after an unordered read of another dispatch")
    kernels.run("fill", {0: y}, 1, 64, hazard=6)
    kernels.run("fill", {0: y}, 1, 64, hazard=6)
    check(reports(), "fill", "write after an unordered write of another dispatch")


def test_other_halves_and_atomics_do_not_conflict(library):
    kernels = library("defects", True)
    y, z, n = np.zeros(128, np.float32), np.zeros(64, np.float32), np.zeros(1, np.uint32)
    kernels.run("fill", {0: y[:64]}, 1, 64, hazard=10)
    kernels.run("use", {0: y[64:], 1: z}, 1, 64, hazard=10)
    kernels.run("tally", {0: n}, 2, 64, hazard=10)
    kernels.run("tally", {0: n}, 2, 64, hazard=10)
    assert reports() == []
    assert n[0] == 256


def test_memory_that_changes_hands(library):
    kernels = library("defects", True)
    y = np.zeros(64, np.float32)
    kernels.run("fill", {0: y}, 1, 64, hazard=20)
    forget(y)
    kernels.run("fill", {0: y}, 1, 64, hazard=20)
    assert reports() == []


def test_bytes_of_one_word_are_told_apart():
    text = """#include <metal_stdlib>
kernel void bytes(device uchar* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }
kernel void words(device uint* y [[buffer(0)]], uint i [[thread_position_in_grid]]) { y[i] = i; }
"""
    kernels = Library(text, race=True)
    y = np.zeros(64, np.uint8)
    kernels.run("words", {0: y}, 1, 16, hazard=1)
    kernels.run("bytes", {0: y}, 8, 8, hazard=2)
    assert reports() == []
    kernels.run("words", {0: y[4:]}, 1, 1, hazard=3)
    kernels.run("bytes", {0: y[:4]}, 1, 4, hazard=3)
    assert reports() == []
    kernels.run("bytes", {0: y[4:]}, 1, 4, hazard=3)
    assert "race on device memory" in reports()[0]
