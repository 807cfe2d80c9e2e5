"""The device of csrc/backend/metal/device.mm; and that the simulated one refuses what Metal refuses."""

from __future__ import annotations

import ctypes
import mmap
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.metal_emu.device import build
from tests.metal_emu.device.driver import Device, DeviceError

SIMULATED = sys.platform != "darwin"
simulated = pytest.mark.skipif(not SIMULATED, reason="about the simulated device")
PAGE = 16384

SOURCE = """
#include <metal_stdlib>
using namespace metal;
constant uint kAdd [[function_constant(0)]];
kernel void add(constant uint& n [[buffer(0)]], device const float* x [[buffer(1)]],
                device float* y [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  if (i < n) y[i] = x[i] + float(kAdd);
}
kernel void reverse(constant uint& n [[buffer(0)]], device const float* x [[buffer(1)]],
                    device float* y [[buffer(2)]], threadgroup float* t [[threadgroup(0)]],
                    uint i [[thread_index_in_threadgroup]]) {
  t[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = t[n - 1 - i];
}
kernel void follow(device const ulong* table [[buffer(1)]], device float* y [[buffer(2)]],
                   uint i [[thread_position_in_grid]]) {
  y[i] = ((device const float*)table[0])[i];
}
"""


@pytest.fixture
def settings(fake: build.Control, metal_device: None) -> Iterator[build.Control]:
    """The simulated device's, put back after the test."""
    yield fake
    fake.reset()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if SIMULATED:
        request.getfixturevalue("settings")
    device = Device()
    yield device
    device.close()


@pytest.fixture
def add(device: Device) -> int:
    return device.new_pipeline(device.new_library("add", SOURCE), "add", {0: 5})


def ones(device: Device, n: int = 100) -> tuple:
    x, y = device.new_buffer(4 * n), device.new_buffer(4 * n)
    x.array(np.float32)[:] = 1
    return x, y


def adds(pipeline: int, x, y, n: int = 100, **more) -> dict:
    groups = ((n + 31) // 32,)
    args = np.uint32(n).tobytes()
    return dict(
        pipeline=pipeline, groups=groups, threads=(32,), args=args, buffers={1: x, 2: y}, **more
    )


# ---- what device.h promises, on any device


def test_info(device: Device) -> None:
    assert device.info.name
    assert device.info.page_bytes == PAGE
    assert device.info.max_buffer_bytes >= 1 << 30
    assert device.info.working_set_bytes >= 1 << 30


def test_new_buffers_are_zero(device: Device) -> None:
    for n_bytes in (1, 4, 4095, 100_000):
        buffer = device.new_buffer(n_bytes)
        assert buffer.n_bytes >= n_bytes
        assert not buffer.array(np.uint8).any()
        assert buffer.gpu_address
        device.free(buffer)


def test_dispatches_of_a_list_follow_each_other(device: Device, add: int) -> None:
    x, y = ones(device)
    device.run(adds(add, x, y), adds(add, y, x, barrier=1), adds(add, x, y, barrier=1))
    assert (y.array(np.float32) == 16).all()


def test_command_buffers_follow_each_other(device: Device, add: int) -> None:
    x, y = ones(device)
    numbers = [device.encode([adds(add, *pair)]) for pair in [(x, y), (y, x), (x, y)]]
    for number in numbers:
        device.commit(number)
    for number in numbers:
        device.wait(number)
    assert (y.array(np.float32) == 16).all()


def test_state_of_the_encoder_is_kept_and_changed(device: Device, add: int) -> None:
    """Neighbouring dispatches share pipeline, arguments and buffers in every combination."""
    x, y = ones(device, 256)
    other = device.new_pipeline(device.new_library("add", SOURCE), "add", {0: 7})
    n = 64
    part = [
        adds(p, (x, 4 * i), (y, 4 * i), n)
        for i, p in [(0, add), (64, add), (128, other), (192, other)]
    ]
    part[3]["args"] = np.uint32(n - 1).tobytes()
    device.run(*part)
    expected = np.repeat(np.float32([6, 6, 8, 8]), n)
    expected[-1] = 0
    assert np.array_equal(y.array(np.float32), expected)


def test_threadgroup_memory(device: Device) -> None:
    pipeline = device.new_pipeline(device.new_library("add", SOURCE), "reverse")
    x, y = device.new_buffer(256), device.new_buffer(256)
    x.array(np.float32)[:] = np.arange(64)
    args = np.uint32(64).tobytes()
    reverse = dict(pipeline=pipeline, groups=(1,), threads=(64,), args=args, threadgroup_bytes=256)
    device.run({**reverse, "buffers": {1: x, 2: y}})
    assert np.array_equal(y.array(np.float32), np.arange(64)[::-1])


@pytest.mark.parametrize("residency_sets", [0, 1] if SIMULATED else [1])
def test_memory_reached_through_an_address(
    request: pytest.FixtureRequest, residency_sets: int
) -> None:
    if SIMULATED:
        request.getfixturevalue("settings")["residency_sets"] = residency_sets
    device = request.getfixturevalue("device")
    follow = device.new_pipeline(device.new_library("add", SOURCE), "follow")
    x, y = ones(device, 64)
    table = device.new_buffer(16)
    table.array(np.uint64)[0] = x.gpu_address
    dispatch = dict(pipeline=follow, groups=(2,), threads=(32,), buffers={1: table, 2: y})
    device.run(dispatch, indirect={x.id: False})
    assert (y.array(np.float32) == 1).all()


def test_mapped_file(device: Device, add: int, tmp_path: Path) -> None:
    values = np.arange(3 * PAGE // 4, dtype=np.float32)
    path = tmp_path / "weights"
    path.write_bytes(bytes(PAGE) + values.tobytes())  # room to find an aligned page
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        raw = np.frombuffer(mapped, np.uint8)
        skip = -raw.ctypes.data % PAGE
        x = device.wrap(raw.ctypes.data + skip, 3 * PAGE)
        y = device.new_buffer(3 * PAGE)
        device.run(adds(add, x, y, values.size))
        assert np.array_equal(y.array(np.float32), raw[skip : skip + 3 * PAGE].view(np.float32) + 5)
        device.free(x)
        del raw


def test_a_buffer_freed_in_flight_lives_until_the_end(device: Device, add: int) -> None:
    x, y = ones(device)
    number = device.encode([adds(add, x, y)])
    device.free(x)
    device.commit(number)
    device.wait(number)
    assert (y.array(np.float32) == 6).all()


def test_unknown_ids_are_refused(device: Device, add: int) -> None:
    x, y = ones(device)
    device.free(x)
    with pytest.raises(DeviceError, match="binds buffer"):
        device.encode([adds(add, x, y)])
    with pytest.raises(DeviceError, match="bad dispatch"):
        device.encode([adds(77, y, y)])
    with pytest.raises(DeviceError, match="cannot be committed"):
        device.commit(1234)
    with pytest.raises(DeviceError, match="not committed"):
        device.wait(1234)


def test_discarded_command_buffers_do_nothing(device: Device, add: int) -> None:
    x, y = ones(device)
    device.discard(device.encode([adds(add, x, y)]))
    device.run(adds(add, y, x))
    assert (x.array(np.float32) == 5).all()


def test_an_empty_list(device: Device) -> None:
    device.run()


def test_the_compilers_message_is_passed_on(device: Device) -> None:
    with pytest.raises(DeviceError, match=r"broken: (.|\n)*undeclared") as error:
        device.new_library(
            "broken", '#line 7 "metal/broken.metal"\nkernel void f() { nonsense(); }'
        )
    assert error.value.code == DeviceError.COMPILE
    assert "metal/broken.metal:7" in str(error.value)
    library = device.new_library("add", SOURCE)
    with pytest.raises(DeviceError, match="missing") as error:
        device.new_pipeline(library, "missing")
    assert error.value.code == DeviceError.COMPILE


def test_libraries_compile_on_several_threads(device: Device) -> None:
    pipelines: dict[int, int] = {}

    def make(i: int) -> None:
        source = SOURCE.replace("float(kAdd)", f"float(kAdd) + {i}.0f")
        pipelines[i] = device.new_pipeline(device.new_library(f"add{i}", source), "add", {0: 0})

    threads = [threading.Thread(target=make, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    x, y = ones(device)
    for i in range(4):
        device.run(adds(pipelines[i], x, y))
        assert (y.array(np.float32) == 1 + i).all()


# ---- failures


@simulated
def test_a_failed_command_buffer_is_an_error_and_no_more(
    settings: build.Control, device: Device, add: int
) -> None:
    x, y = ones(device)
    for code, expected, text in [
        (8, DeviceError.OUT_OF_MEMORY, "Insufficient Memory"),
        (2, DeviceError.FAULT, "Timeout"),
        (3, DeviceError.FAULT, "Address Fault"),
        (1, DeviceError.FAULT, "Internal"),
    ]:
        settings["fail_command"], settings["fail_command_code"] = 1, code
        with pytest.raises(DeviceError, match=f"decode: .*{text}.*code {code}") as error:
            device.run(adds(add, x, y), label="decode")
        assert error.value.code == expected
    assert not y.array(np.float32).any()
    device.run(adds(add, x, y))
    assert (y.array(np.float32) == 6).all()


@simulated
def test_a_failure_in_a_row_of_command_buffers(
    settings: build.Control, device: Device, add: int
) -> None:
    x, y = ones(device)
    settings["fail_command"] = 2
    numbers = [device.encode([adds(add, x, y)]) for _ in range(3)]
    for number in numbers:
        device.commit(number)
    device.wait(numbers[0])
    with pytest.raises(DeviceError, match="Internal"):
        device.wait(numbers[1])
    device.wait(numbers[2])


@simulated
def test_a_wait_may_end_early(settings: build.Control, device: Device, add: int) -> None:
    x, y = ones(device)
    settings["hold"] = 1
    number = device.encode([adds(add, x, y)])
    device.commit(number)
    for timeout_ms in (0, 1, 50):
        with pytest.raises(DeviceError) as error:
            device.wait(number, timeout_ms)
        assert error.value.code == DeviceError.INTERRUPTED
    settings["hold"] = 0
    device.wait(number)
    assert (y.array(np.float32) == 6).all()


@simulated
def test_no_memory(settings: build.Control, device: Device) -> None:
    settings["fail_allocation"] = 1
    with pytest.raises(DeviceError, match="1000000 bytes") as error:
        device.new_buffer(1_000_000)
    assert error.value.code == DeviceError.OUT_OF_MEMORY
    page = device.new_buffer(PAGE)
    settings["fail_allocation"] = 1
    with pytest.raises(DeviceError, match="map 16384 bytes") as error:
        device.wrap(page.contents, PAGE)
    assert error.value.code == DeviceError.OUT_OF_MEMORY


@simulated
def test_a_buffer_longer_than_allowed(settings: build.Control) -> None:
    settings["max_buffer_bytes"] = 1 << 20
    device = Device()
    assert device.info.max_buffer_bytes == 1 << 20
    with pytest.raises(DeviceError, match="the device allows 1048576") as error:
        device.new_buffer((1 << 20) + 1)
    assert error.value.code == DeviceError.OUT_OF_MEMORY
    device.close()


@simulated
def test_refused_libraries_and_pipelines(settings: build.Control, device: Device) -> None:
    settings["fail_library"] = 1
    with pytest.raises(DeviceError, match=r"add: .*injected"):
        device.new_library("add", SOURCE)
    library = device.new_library("add", SOURCE)
    settings["fail_pipeline"] = 1
    with pytest.raises(DeviceError, match="add: injected"):
        device.new_pipeline(library, "add", {0: 1})


@simulated
@pytest.mark.parametrize("setting", ["unified_memory", "apple7"])
def test_devices_that_are_not_apples(settings: build.Control, setting: str) -> None:
    settings[setting] = 0
    with pytest.raises(DeviceError, match="needs Apple silicon") as error:
        Device()
    assert error.value.code == DeviceError.UNAVAILABLE


@simulated
def test_linux_has_no_device_of_its_own(
    settings: build.Control, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GREBE_TEST_METAL_DEVICE")
    with pytest.raises(DeviceError, match="metal needs macOS on Apple silicon") as error:
        Device()
    assert error.value.code == DeviceError.UNAVAILABLE
    monkeypatch.setenv("GREBE_TEST_METAL_DEVICE", str(tmp_path / "missing.so"))
    with pytest.raises(DeviceError, match=r"GREBE_TEST_METAL_DEVICE: .*missing\.so"):
        Device()


@simulated
def test_nothing_is_leaked(settings: build.Control) -> None:
    def live() -> int:
        # The queue's thread lets go of a command buffer a moment after its end.
        for _ in range(200):
            if settings["live_objects"] == before:
                break
            threading.Event().wait(0.01)
        return settings["live_objects"]

    before, buffers = settings["live_objects"], settings["buffers"]
    device = Device()
    add = device.new_pipeline(device.new_library("add", SOURCE), "add", {0: 5})
    x, y = ones(device)
    device.run(adds(add, x, y))
    device.discard(device.encode([adds(add, x, y)]))
    device.commit(device.encode([adds(add, x, y)]))  # never waited for
    device.close()
    assert live() == before
    assert settings["buffers"] == buffers


# ---- what the simulated device refuses

REFUSALS = {
    "nothing wrong": None,
    "dispatch without pipeline": "dispatchThreadgroups without a pipeline",
    "commit with open encoder": "commit of '' with an open encoder",
    "encoder never ended": "a compute encoder was released before endEncoding",
    "encoder ended twice": "endEncoding twice",
    "dispatch after the end": "after endEncoding",
    "committed twice": "committed twice",
    "encoder on a committed command buffer": "an encoder on a committed command buffer",
    "second open encoder": "a second encoder was opened before endEncoding",
    "wait before commit": "waitUntilCompleted before commit",
    "setBytes too long": "setBytes: 4097 bytes",
    "no-copy pointer": "not a multiple of the page",
    "no-copy length": "length 4096 is not a multiple of the page",
    "empty buffer": "newBufferWithLength: 0 bytes",
    "offset past the end": "offset 128 is past the end of a buffer of 128 bytes",
    "offset not aligned": "offset 2 is not a multiple of 4",
    "offset without buffer": "no buffer at index 3",
    "threadgroup length not a multiple of 16": "setThreadgroupMemoryLength: 24 bytes",
    "threadgroup memory too long": "setThreadgroupMemoryLength: 32784 bytes",
    "too many threads": "1025 threads in a threadgroup",
    "empty grid": "an empty grid",
    "unbound argument": "buffer 1 is not bound",
    "message to a released object": "message length sent to a released FakeBuffer",
    "over-released": "over-released FakeBuffer",
    "residency before commit": "requestResidency with uncommitted allocations",
    "removed from a set that it is not in": "the buffer is not in the set",
    "wrong type encoding": r"setBytes:length:atIndex:\]: the call site encodes v@:\^vfQ, Metal has v@:\^vQQ",
    "unknown selector": "FakeComputeEncoder does not respond to setTessellationFactorScale:",
    "fast math": "fast math is on",
    "freed in flight": "freed while a command buffer that uses it is not done",
    "missing barrier": "race on device memory: .* of another dispatch",
    "missing fence": "race on device memory: .* of another dispatch",
    "fence awaited after its update": "waitForFence after updateFence",
    "indirect read": None,
    "indirect read not announced": "out-of-bounds read",
    "indirect write announced as read": "write to read-only",
}


@pytest.fixture(scope="module")
def misuse() -> tuple[ctypes.CDLL, build.Control]:
    """A library with a simulated device of its own, and wrong uses of it."""
    path = build.build("misuse", [build.HERE / "misuse.mm"])
    control = build.Control(path)
    control["race"] = 1
    control["residency_sets"] = 1
    library = ctypes.CDLL(str(path))
    library.misuse_name.restype = ctypes.c_char_p
    return library, control


@simulated
def test_every_case_is_expected(misuse: tuple[ctypes.CDLL, build.Control]) -> None:
    names, i = [], 0
    while name := misuse[0].misuse_name(i):
        names.append(name.decode())
        i += 1
    assert names == list(REFUSALS)


@simulated
@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(misuse: tuple[ctypes.CDLL, build.Control], name: str) -> None:
    library, control = misuse
    control.reports()
    library.misuse_run(list(REFUSALS).index(name))
    reports, expected = control.reports(), REFUSALS[name]
    if expected is None:
        assert reports == []
    else:
        assert any(re.search(expected, line) for line in reports), reports


@simulated
def test_autorelease_without_a_pool(misuse: tuple[ctypes.CDLL, build.Control]) -> None:
    library, control = misuse
    library.misuse_without_pool()
    assert control.reports() == ["FakeCommandBuffer autoreleased with no pool in place"]


@simulated
def test_only_the_interface_is_exported() -> None:
    """Another C++ runtime in the process must not find ours."""
    out = subprocess.run(
        ["nm", "-D", "--defined-only", build.build()], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in out.splitlines()}
    assert "grebe_new_metal_device" in names
    assert all(name.startswith(("grebe_new_metal_device", "fake_metal_")) for name in names)
