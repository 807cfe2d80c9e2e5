"""Builds the simulated Metal device: device.mm, Objective-C's runtime and Metal's classes in one library.

Run as a program, it prints the path of the library, for GREBE_TEST_METAL_DEVICE:

    python -m tests.metal_emu.device.build

The compiler is that of the ziglang package (clang); METAL_EMU_CXX names another clang++.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ENGINE = ROOT / "csrc"
SOURCES = [ENGINE / "backend/metal/device.mm", *sorted(HERE.glob("*.cpp"))]
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
# Types of blocks appear in declarations; none is made.
OBJC = ["-fobjc-runtime=gnustep-2.0", "-fblocks"]
INCLUDES = [f"-I{HERE / 'sysroot'}", f"-I{ENGINE}", f"-I{HERE}"]


def compiler() -> list[str]:
    named = os.environ.get("METAL_EMU_CXX")
    if named:
        return shlex.split(named)
    return [sys.executable, "-m", "ziglang", "c++", "-fno-sanitize=undefined"]


def cache() -> Path:
    named = os.environ.get("METAL_EMU_CACHE")
    folder = Path(named) if named else ROOT / "build" / "metal_emu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")


def build(
    name: str = "device", extra: list[Path] | None = None, exports: Path | None = None
) -> Path:
    """The path of the library; compiled when its sources have changed.

    Args:
        name: of the library.
        extra: more sources; Objective-C++ among them is compiled without ARC.
        exports: the linker's version script; what it does not name stays inside.
    """
    from tests.metal_emu.library import runtime_path

    runtime = Path(runtime_path())
    exports = exports or HERE / "exports.map"
    sources = [*SOURCES, *(extra or [])]
    headers = [*HERE.glob("*.h"), *HERE.glob("sysroot/*/*.h"), HERE.parent / "runtime" / "emu.h"]
    headers += [ENGINE / "backend/metal/device.h", ENGINE / "backend/metal/device_loader.h"]
    key = hashlib.sha256(repr((compiler(), FLAGS, platform.machine(), str(runtime))).encode())
    for path in [Path(__file__), exports, *sources, *sorted(headers)]:
        key.update(path.read_bytes() + b"\0")
    library = cache() / f"{name}-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=cache()) as work:
        objects, jobs = [], []
        for source in sources:
            out = Path(work) / (source.name + ".o")
            command = [*compiler(), *FLAGS, *INCLUDES, "-c", "-o", str(out), str(source)]
            if source.suffix == ".mm":
                arc = [] if source in (extra or []) else ["-fobjc-arc"]
                command[-1:-1] = ["-x", "objective-c++", *OBJC, *arc]  # -x is for files after it
            objects.append(str(out))
            jobs.append(command)
        for command in jobs:
            run(command)
        made = Path(work) / library.name
        link = [*compiler(), "-shared", *objects, str(runtime), "-o", str(made)]
        link += [f"-Wl,--version-script={exports}", "-lpthread", "-ldl"]
        run(link)
        made.replace(library)
    return library


def compiler_command() -> str:
    """For METAL_EMU_COMPILER: works from any folder."""
    return f"cd {shlex.quote(str(ROOT))} && {shlex.quote(sys.executable)} -m tests.metal_emu.compiler exec"


def compiler_stamp() -> str:
    """For METAL_EMU_STAMP: a value that changes with the emulator's compiler and headers."""
    key = hashlib.sha256(os.environ.get("METAL_EMU_CLANG", "").encode())
    for path in sorted([*HERE.parent.glob("compiler/*.py"), *HERE.parent.glob("include/**/*")]):
        if path.is_file():
            key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return key.hexdigest()[:16]


def environment() -> dict[str, str]:
    """Variables with which the engine finds the simulated device, and the device its compiler."""
    return {
        "GREBE_TEST_METAL_DEVICE": str(build()),
        "METAL_EMU_COMPILER": compiler_command(),
        "METAL_EMU_STAMP": compiler_stamp(),
    }


class Control:
    """Steers the simulated device of this process and reads its findings; see control.h."""

    def __init__(self, library: Path | str) -> None:
        self._lib = ctypes.CDLL(str(library))
        self._lib.fake_metal_set.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
        self._lib.fake_metal_get.argtypes = [ctypes.c_char_p]
        self._lib.fake_metal_get.restype = ctypes.c_uint64
        self._lib.fake_metal_reports.argtypes = [ctypes.c_char_p, ctypes.c_int]

    def __setitem__(self, name: str, value: int) -> None:
        if self._lib.fake_metal_set(name.encode(), value) != 0:
            raise KeyError(name)

    def __getitem__(self, name: str) -> int:
        value: int = self._lib.fake_metal_get(name.encode())
        if value == 2**64 - 1:
            raise KeyError(name)
        return value

    def reset(self) -> None:
        """Sets everything back to where it started."""
        self._lib.fake_metal_reset()

    def methods(self) -> dict[tuple[str, str], str]:
        """Type encodings by class and selector."""
        text = ctypes.create_string_buffer(1 << 20)
        self._lib.fake_metal_methods(text, len(text))
        lines = [line.split(" ") for line in text.value.decode().splitlines()]
        return {(owner, selector): types for owner, selector, types in lines}

    def reports(self) -> list[str]:
        """What was found since the last call, one line each."""
        text = ctypes.create_string_buffer(1 << 20)
        self._lib.fake_metal_reports(text, len(text))
        return text.value.decode("utf-8", "replace").splitlines()


if __name__ == "__main__":
    print(build())
