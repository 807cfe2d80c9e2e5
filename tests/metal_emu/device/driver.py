"""The Metal device of this machine (device.h) for Python: buffers as numpy arrays, dispatches as calls.

The same on a Mac's device and on the simulated one; GREBE_TEST_METAL_DEVICE chooses the latter.
"""

from __future__ import annotations

import ctypes as c
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.metal_emu.device import build

LOADER = build.ENGINE / "backend/metal/device_loader.cpp"


class DeviceError(RuntimeError):
    """A status that is not ok."""

    UNAVAILABLE, OUT_OF_MEMORY, COMPILE, FAULT, INTERRUPTED = 1, 2, 3, 4, 5

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Status(c.Structure):
    _fields_ = [("code", c.c_int32), ("message", c.c_char * 2044)]

    def check(self) -> None:
        if self.code != 0:
            raise DeviceError(self.code, self.message.decode("utf-8", "replace"))


class Info(c.Structure):
    _fields_ = [
        ("name", c.c_char * 128),
        ("max_buffer_bytes", c.c_uint64),
        ("working_set_bytes", c.c_uint64),
        ("page_bytes", c.c_uint64),
        ("has_residency_sets", c.c_bool),
    ]


class Buffer(c.Structure):
    _fields_ = [
        ("id", c.c_uint32),
        ("contents", c.c_void_p),
        ("gpu_address", c.c_uint64),
        ("n_bytes", c.c_uint64),
    ]

    def array(self, dtype: Any) -> np.ndarray:
        """The memory itself."""
        raw = (c.c_char * self.n_bytes).from_address(self.contents)
        return np.frombuffer(raw, np.uint8)[
            : self.n_bytes // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize
        ].view(dtype)


class Constant(c.Structure):
    _fields_ = [("index", c.c_uint32), ("value", c.c_uint32)]


class Binding(c.Structure):
    _fields_ = [("buffer", c.c_uint32), ("index", c.c_uint32), ("offset", c.c_uint64)]


class RawDispatch(c.Structure):
    _fields_ = [
        ("pipeline", c.c_uint32),
        ("barrier", c.c_uint32),
        ("first_binding", c.c_uint32),
        ("n_bindings", c.c_uint32),
        ("args_offset", c.c_uint32),
        ("args_bytes", c.c_uint32),
        ("threadgroup_bytes", c.c_uint32),
        ("groups", c.c_uint32 * 3),
        ("threads", c.c_uint32 * 3),
    ]


class IndirectUse(c.Structure):
    _fields_ = [("buffer", c.c_uint32), ("writable", c.c_uint32)]


def library() -> Path:
    """The compiled driver: with device.mm on a Mac, else with what loads the simulated device."""
    sources = [build.HERE / "driver.cpp"]
    if sys.platform == "darwin":
        sources.append(build.ENGINE / "backend/metal/device.mm")
        compiler, last = ["clang++", "-fobjc-arc"], []
        for name in ("Metal", "Foundation", "CoreGraphics"):
            last += ["-framework", name]
    else:
        sources.append(LOADER)
        compiler, last = build.compilers()[1], ["-ldl"]
    command = [*compiler, "-std=c++20", "-O1", "-g", "-fPIC", f"-I{build.ENGINE}"]
    key = hashlib.sha256(repr(command).encode())
    for path in [*sources, build.ENGINE / "backend/metal/device.h", LOADER.with_suffix(".h")]:
        key.update(path.read_bytes())
    out = build.cache() / f"driver-{key.hexdigest()[:16]}.so"
    if not out.exists():
        with tempfile.TemporaryDirectory(dir=build.cache()) as work:
            made = Path(work) / out.name
            build.run([*command, "-shared", *sources, *last, "-o", made])
            made.replace(out)
    return out


class Device:
    """device.h, with statuses as exceptions."""

    def __init__(self) -> None:
        self._lib = c.CDLL(str(library()))
        self._lib.driver_new.restype = c.c_void_p
        status = Status()
        self._device = c.c_void_p(self._lib.driver_new(c.byref(status)))
        if not self._device:
            raise DeviceError(status.code, status.message.decode("utf-8", "replace"))
        self.info = Info()
        self._call("info", c.byref(self.info))

    def close(self) -> None:
        if self._device:
            self._call("delete")
        self._device = c.c_void_p()

    def _call(self, name: str, *args: Any) -> None:
        getattr(self._lib, "driver_" + name)(self._device, *args)

    def _checked(self, name: str, *args: Any) -> None:
        status = Status()
        self._call(name, *args, c.byref(status))
        status.check()

    def new_buffer(self, n_bytes: int) -> Buffer:
        out = Buffer()
        self._checked("new_buffer", c.c_uint64(n_bytes), c.byref(out))
        return out

    def wrap(self, address: int, n_bytes: int) -> Buffer:
        out = Buffer()
        self._checked("wrap", c.c_void_p(address), c.c_uint64(n_bytes), c.byref(out))
        return out

    def free(self, buffer: Buffer) -> None:
        self._call("free", c.c_uint32(buffer.id))

    def new_library(self, name: str, source: str) -> int:
        out = c.c_uint32()
        self._checked("library", name.encode(), source.encode(), c.byref(out))
        return out.value

    def new_pipeline(
        self, library: int, kernel: str, constants: dict[int, int] | None = None
    ) -> int:
        items = list((constants or {}).items())
        values = (Constant * max(1, len(items)))(*[Constant(i, v) for i, v in items])
        out, self.max_threads = c.c_uint32(), c.c_uint32()
        self._checked(
            "pipeline",
            c.c_uint32(library),
            kernel.encode(),
            values,
            c.c_uint64(len(items)),
            c.byref(out),
            c.byref(self.max_threads),
        )
        return out.value

    def encode(
        self,
        dispatches: list[dict[str, Any]],
        indirect: dict[int, bool] | None = None,
        label: str = "test",
    ) -> int:
        """Each dispatch: pipeline, groups, threads, args, buffers {index: buffer or (buffer, offset)}, barrier, threadgroup_bytes."""
        raw = (RawDispatch * max(1, len(dispatches)))()
        bindings: list[Binding] = []
        data = b""
        for out, d in zip(raw, dispatches, strict=False):
            out.pipeline = d["pipeline"]
            out.barrier = d.get("barrier", 0)
            out.first_binding = len(bindings)
            for index, what in d.get("buffers", {}).items():
                buffer, offset = what if isinstance(what, tuple) else (what, 0)
                bindings.append(Binding(getattr(buffer, "id", buffer), index, offset))
            out.n_bindings = len(bindings) - out.first_binding
            args = d.get("args", b"")
            out.args_offset, out.args_bytes = len(data), len(args)
            data += args + bytes(-len(args) % 16)
            out.threadgroup_bytes = d.get("threadgroup_bytes", 0)
            out.groups = (c.c_uint32 * 3)(*(*d["groups"], 1, 1)[:3])
            out.threads = (c.c_uint32 * 3)(*(*d["threads"], 1, 1)[:3])
        uses = [IndirectUse(b, w) for b, w in (indirect or {}).items()]
        number = c.c_uint64()
        self._checked(
            "encode",
            raw,
            c.c_uint64(len(dispatches)),
            (Binding * max(1, len(bindings)))(*bindings),
            c.create_string_buffer(data, len(data) + 1),
            (IndirectUse * max(1, len(uses)))(*uses),
            c.c_uint64(len(uses)),
            label.encode(),
            c.byref(number),
        )
        return number.value

    def commit(self, number: int) -> None:
        self._checked("commit", c.c_uint64(number))

    def wait(self, number: int, timeout_ms: int = 60000) -> None:
        self._checked("wait", c.c_uint64(number), c.c_uint64(timeout_ms))

    def discard(self, number: int) -> None:
        self._call("discard", c.c_uint64(number))

    def run(self, *dispatches: dict[str, Any], **more: Any) -> None:
        number = self.encode(list(dispatches), **more)
        self.commit(number)
        self.wait(number)


PROBE = """
#include <metal_stdlib>
using namespace metal;
kernel void lanes(device uint* y [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  y[i] = simd_sum(i);
}
"""


def main() -> int:
    """Says whether kernels run here, and on what: 0 when they do."""
    try:
        device = Device()
        info = device.info
        sets = "with" if info.has_residency_sets else "without"
        print(
            f"{info.name.decode()}: working set {info.working_set_bytes / 2**30:.1f} GiB, "
            f"buffers to {info.max_buffer_bytes / 2**30:.1f} GiB, {sets} residency sets"
        )
        y = device.new_buffer(4 * 64)
        pipeline = device.new_pipeline(device.new_library("probe", PROBE), "lanes")
        device.run({"pipeline": pipeline, "groups": (2,), "threads": (32,), "buffers": {1: y}})
        found = y.array(np.uint32)
        expected = np.repeat(np.uint32([496, 1520]), 32)
        if not np.array_equal(found, expected):
            raise DeviceError(DeviceError.FAULT, f"simd_sum gave {found[[0, 32]]}, not [496 1520]")
    except DeviceError as error:
        print(f"no usable Metal device: {error}", file=sys.stderr)
        return 1
    print("kernels run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
