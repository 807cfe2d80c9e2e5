"""Builds the simulated Metal device: device.mm, Objective-C's runtime and Metal's classes in one library.

Run as a program, it prints the path of the library, for GREBE_TEST_METAL_DEVICE:

    python -m tests.metal_emu.device.build

device.mm is compiled by clang, that of the ziglang package; the rest, and the linking, is done by the
system's C++ compiler where there is one. METAL_EMU_CXX names a clang++ for everything.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ENGINE = ROOT / "csrc"
SOURCES = [ENGINE / "backend/metal/device.mm", *sorted(HERE.glob("*.cpp"))]
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
# Types of blocks appear in declarations; none is made.
OBJC = ["-fobjc-runtime=gnustep-2.0", "-fblocks"]
INCLUDES = [f"-I{HERE / 'sysroot'}", f"-I{ENGINE}", f"-I{HERE}"]


def compilers() -> tuple[list[str], list[str]]:
    """For Objective-C++; and for C++ and linking, with the same C++ library."""
    from tests.metal_emu.compiler import tools

    host = tools.host_cxx()
    if os.environ.get("METAL_EMU_CXX") or "zig" in Path(host[0]).name:
        return host, host
    # Plain clang finds the system's C++ headers. Those of C come with zig, and go after them.
    zig = tools.zig()
    return [str(zig), "clang", "-idirafter", str(zig.parent / "lib" / "include")], host


def cache() -> Path:
    named = os.environ.get("METAL_EMU_CACHE")
    folder = Path(named) if named else ROOT / "build" / "metal_emu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(command: Sequence[str | Path]) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(words)}\n{done.stderr}")


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
    objective, plain = compilers()
    sources = [*SOURCES, *(extra or [])]
    headers = [*HERE.glob("*.h"), *HERE.glob("sysroot/*/*.h"), HERE.parent / "runtime" / "emu.h"]
    headers += [ENGINE / "backend/metal/device.h", ENGINE / "backend/metal/device_loader.h"]
    settings = repr((objective, plain, FLAGS, platform.machine(), str(runtime)))
    key = hashlib.sha256(settings.encode())
    for path in [Path(__file__), exports, *sources, *sorted(headers)]:
        key.update(path.read_bytes() + b"\0")
    library = cache() / f"{name}-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=cache()) as work:
        commands, objects = [], []
        for source in sources:
            objects.append(Path(work) / (source.name + ".o"))
            language = [*plain, *FLAGS]
            if source.suffix == ".mm":
                arc = [] if source in (extra or []) else ["-fobjc-arc"]
                language = [*objective, *FLAGS, "-x", "objective-c++", *OBJC, *arc]
            commands.append([*language, *INCLUDES, "-c", "-o", objects[-1], source])
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(run, commands))
        made = Path(work) / library.name
        link = [*plain, "-shared", *objects, runtime, "-o", made]
        run([*link, f"-Wl,--version-script={exports}", "-lpthread", "-ldl"])
        made.replace(library)
    return library


def compiler_command() -> str:
    """For METAL_EMU_COMPILER: works from any folder."""
    return f"cd {shlex.quote(str(ROOT))} && {shlex.quote(sys.executable)} -m tests.metal_emu.compiler exec"


def compiler_stamp() -> str:
    """For METAL_EMU_STAMP: a value that changes with the emulator's compiler and headers."""
    from tests.metal_emu.compiler import tools

    return tools.fingerprint()


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
