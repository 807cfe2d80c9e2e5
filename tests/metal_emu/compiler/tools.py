"""The compilers: clang as the ``ziglang`` package brings it, or one named by the environment."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

INCLUDE = Path(__file__).resolve().parent.parent / "include"
ROOT = Path(__file__).resolve().parents[3]

if platform.system() != "Linux":
    raise ImportError("the Metal emulator is for Linux; on a Mac the kernels run on the device")


class CompileError(Exception):
    """A compiler, the rewriter or the host refused something; the message is what they said."""


@functools.cache
def zig() -> Path:
    """The executable of the ``ziglang`` package."""
    try:
        import ziglang
    except ImportError as error:
        raise CompileError(
            "no compiler for Metal kernels: install the test extra (ziglang), or set "
            "METAL_EMU_CXX=clang++ and METAL_EMU_CLANG=clang (version 19 or later)"
        ) from error
    return Path(ziglang.__file__).parent / "zig"


def clang() -> list[str]:
    """Clang for C++ and its C++ for OpenCL mode (``zig c++`` refuses the latter)."""
    override = os.environ.get("METAL_EMU_CLANG") or os.environ.get("METAL_EMU_CXX")
    return override.split() if override else [str(zig()), "clang"]


def cxx() -> list[str]:
    """Clang for the rewritten kernels. ``zig clang`` is plain clang, without zig's own driver."""
    override = os.environ.get("METAL_EMU_CXX")
    return override.split() if override else [str(zig()), "clang"]


def linker() -> list[str]:
    """Links shared libraries that need no start-up code."""
    if os.environ.get("METAL_EMU_CXX"):
        return [*cxx(), "-shared", "-nostdlib"]
    return [str(zig()), "ld.lld", "-shared"]


def host_cxx() -> list[str]:
    """The compiler of the runtime: any C++20 compiler.

    zig comes last: it would build its own C++ library first, which takes more than a minute.
    """
    named = os.environ.get("METAL_EMU_CXX") or os.environ.get("CXX")
    if named:
        return named.split()
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    return [str(zig()), "c++"]


@functools.cache
def target() -> list[str]:
    """Options that name the machine, and what kernels need of it."""
    machine = platform.machine()
    if machine in ("x86_64", "AMD64"):
        with Path("/proc/cpuinfo").open() as f:
            flags = next((line.split() for line in f if line.startswith("flags")), [])
        if missing := {"avx2", "f16c", "fma"}.difference(flags):
            raise CompileError(f"the Metal emulator needs a CPU with {', '.join(sorted(missing))}")
        return ["-target", "x86_64-linux-gnu", "-mavx2", "-mf16c", "-mfma"]
    if machine in ("aarch64", "arm64"):
        return ["-target", "aarch64-linux-gnu", "-mno-outline-atomics"]
    raise CompileError(f"the Metal emulator has no context switch for {machine}")


def run(command: Sequence[str | Path], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a compiler and returns what it said."""
    return subprocess.run(
        [str(word) for word in command], input=text, capture_output=True, text=True, check=False
    )


def job_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def cache_folder() -> Path:
    """Where compiled libraries are kept; each is named after all that it depends on."""
    folder = Path(os.environ.get("METAL_EMU_CACHE") or ROOT / "build" / "metal_emu")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A folder's file appears at once or not at all, whoever else makes it meanwhile.

    Yields the path to write to.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem + ".", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def fingerprint() -> str:
    """Changes whenever this package's compiler or headers do, or another clang is used."""
    import hashlib

    digest = hashlib.sha256()
    files = [*sorted(Path(__file__).parent.glob("*.py")), *sorted(INCLUDE.rglob("*"))]
    for path in files:
        if path.is_file():
            digest.update(path.read_bytes())
    version = run([*cxx(), "--version"])
    if version.returncode:
        raise CompileError(f"{cxx()} does not run: {version.stderr.strip()}")
    digest.update(version.stdout.splitlines()[0].encode())
    digest.update(" ".join(target()).encode())
    return digest.hexdigest()
