"""Runs Metal kernels over numpy arrays.

>>> library = Library("metal/norm.metal", race=True)                      # doctest: +SKIP
>>> library.run("rms_norm", {0: args, 1: x, 2: y}, groups=4, threads=64)  # doctest: +SKIP
>>> assert reports() == []                                                # doctest: +SKIP
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .compiler import CompileError, Source, compile_library
from .compiler.tools import cache_folder, host_cxx, job_count, run, written_whole

RUNTIME_FOLDER = Path(__file__).resolve().parent / "runtime"
WRITABLE, READ_ONLY, IMMUTABLE = range(3)  # runtime/emu.h

#: Bound at a buffer index: an array, bytes (read-only, copied), or (array, byte offset).
Bound = np.ndarray[Any, Any] | np.generic | bytes | tuple[np.ndarray[Any, Any], int]


class KernelError(Exception):
    """A dispatch could not be run, or was stopped in the middle."""


class _Bind(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("n_bytes", ctypes.c_uint64),
        ("slot", ctypes.c_int32),
        ("access", ctypes.c_int32),
    )


class _Range(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("n_bytes", ctypes.c_uint64),
        ("access", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class _Constant(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    )


class _Run(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_int32),
        ("by_threads", ctypes.c_int32),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("binds", ctypes.POINTER(_Bind)),
        ("n_binds", ctypes.c_uint64),
        ("indirect", ctypes.POINTER(_Range)),
        ("n_indirect", ctypes.c_uint64),
        ("constants", ctypes.POINTER(_Constant)),
        ("n_constants", ctypes.c_uint64),
        ("threadgroup_bytes", ctypes.POINTER(ctypes.c_uint32)),
        ("seed", ctypes.c_uint64),
        ("hazard", ctypes.c_uint64),
        ("n_workers", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


def runtime_path() -> Path:
    """The runtime as a shared library, built when it is first asked for."""
    files = [*sorted(RUNTIME_FOLDER.glob("*.[ch]*")), RUNTIME_FOLDER.parent / "include/emu/abi.h"]
    options = ["-std=c++20", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-pthread"]
    version = run([*host_cxx(), "--version"])
    digest = hashlib.sha256("\0".join([version.stdout, *host_cxx(), *options]).encode())
    for file in files:
        digest.update(file.read_bytes())
    library = cache_folder() / f"runtime-{digest.hexdigest()[:24]}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory() as folder, written_whole(library) as output:
        sources = [file for file in files if file.suffix == ".cpp"]
        objects = [Path(folder, file.stem + ".o") for file in sources]
        commands = [
            [*host_cxx(), *options, "-c", source, "-o", target]
            for source, target in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(job_count()) as pool:
            results = list(pool.map(run, commands))
        results.append(run([*host_cxx(), "-shared", "-pthread", *objects, "-ldl", "-o", output]))
        for result in results:
            if result.returncode:
                raise CompileError(result.stderr)
    return library


@functools.cache
def runtime() -> ctypes.CDLL:
    """The C interface of runtime/emu.h."""
    lib = ctypes.CDLL(str(runtime_path()))
    lib.msl_open.restype = ctypes.c_void_p
    lib.msl_error.restype = ctypes.c_char_p
    lib.msl_kernel_name.restype = ctypes.c_char_p
    lib.msl_kernel_name.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.msl_kernel_count.argtypes = [ctypes.c_void_p]
    lib.msl_find.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.msl_max_threads.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.msl_dispatch.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Run)]
    for name in ("msl_forget", "msl_mark_unwritten", "msl_mark_written"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_uint64]
        getattr(lib, name).restype = None
    return lib


def reports() -> list[str]:
    """The checker's findings since the last call, each ``file:line: text``."""
    text = ctypes.create_string_buffer(1 << 18)
    runtime().msl_reports(text, len(text))
    return text.value.decode().splitlines()


def stats() -> dict[str, int]:
    """Work done since the last call."""
    counts = (ctypes.c_uint64 * 4)()
    runtime().msl_stats(counts)
    names = ("threads", "switches", "collectives", "barriers")
    return dict(zip(names, counts, strict=True))


def forget(array: np.ndarray[Any, Any]) -> None:
    """Memory that changes hands: what was accessed there no longer counts."""
    runtime().msl_forget(array.ctypes.data, array.nbytes)


class Library:
    """The kernels of one Metal text, compiled once and kept in the cache.

    Args:
        source: a path, or the text itself (a string with a line break, or a Source).
        race: check every memory access; see ``reports``.

    Raises:
        CompileError: by .metal line.
    """

    def __init__(self, source: str | Path | Source, race: bool = False) -> None:
        if isinstance(source, str) and "\n" in source:
            source = Source(source, "text.metal")
        elif not isinstance(source, Source):
            source = Source.read(source)
        self.path = compile_library(source, race)
        self._handle = runtime().msl_open(str(self.path).encode())
        if not self._handle:
            raise CompileError(runtime().msl_error().decode())
        count = runtime().msl_kernel_count(self._handle)
        names = [runtime().msl_kernel_name(self._handle, i) for i in range(count)]
        self.kernels: list[str] = [name.decode() for name in names]

    def run(
        self,
        kernel: str,
        buffers: Mapping[int, Bound],
        groups: int | Sequence[int],
        threads: int | Sequence[int],
        *,
        constants: Mapping[int, int] | None = None,
        threadgroup_bytes: int | Mapping[int, int] = 0,
        read_only: Collection[int] = (),
        immutable: Collection[int] = (),
        indirect: Sequence[tuple[np.ndarray[Any, Any], int]] = (),
        unwritten: Collection[int] = (),
        by_threads: bool = False,
        seed: int = 0,
        hazard: int = 0,
        n_workers: int = 1,
    ) -> None:
        """Dispatches a kernel and waits for it.

        Args:
            kernel: its name.
            buffers: what is bound, by index. Arrays are contiguous and used in place; accesses are
                checked against their exact length.
            groups: of the grid, up to three dimensions (threads with ``by_threads``).
            threads: of a threadgroup, up to three dimensions.
            constants: values of function constants, by index.
            threadgroup_bytes: of [[threadgroup(0)]], or by index; multiples of 16.
            read_only: indices that the kernel must not write.
            immutable: indices that no dispatch writes: cheaper to check than read_only.
            indirect: (array, WRITABLE | READ_ONLY | IMMUTABLE) that the kernel may reach through
                addresses (``array.ctypes.data``) found in tables.
            unwritten: indices whose contents the kernel must not read before it wrote them.
            by_threads: ``groups`` counts threads; the last threadgroups may be smaller.
            seed: shuffles lanes and threadgroups; 0 runs them in order.
            hazard: dispatches of one non-zero id have no barrier between them.
            n_workers: threads to run on, without the checker.

        Raises:
            KernelError: the dispatch is invalid, or the kernel was stopped.
        """
        number = runtime().msl_find(self._handle, kernel.encode())
        if number < 0:
            raise KernelError(f"no kernel {kernel}; there are {', '.join(self.kernels)}")
        kept: list[np.ndarray[Any, Any]] = []  # copies, until the dispatch is over
        binds = (_Bind * max(1, len(buffers)))()
        for i, (slot, bound) in enumerate(buffers.items()):
            array, offset = bound if isinstance(bound, tuple) else (bound, 0)
            access = (
                IMMUTABLE if slot in immutable else READ_ONLY if slot in read_only else WRITABLE
            )
            if isinstance(array, bytes):
                array, access = np.frombuffer(array, np.uint8).copy(), IMMUTABLE
            elif isinstance(array, np.generic):
                array, access = np.array([array]), IMMUTABLE
            if not array.flags.c_contiguous:
                raise KernelError(f"buffer {slot} is not contiguous")
            kept.append(array)
            binds[i] = _Bind(array.ctypes.data + offset, array.nbytes - offset, slot, access)
            if slot in unwritten:
                runtime().msl_mark_unwritten(array.ctypes.data + offset, array.nbytes - offset)
        ranges = (_Range * max(1, len(indirect)))(
            *[_Range(array.ctypes.data, array.nbytes, access, 0) for array, access in indirect]
        )
        values = (_Constant * max(1, len(constants or {})))(
            *[_Constant(i, 0, int(v)) for i, v in (constants or {}).items()]
        )
        if isinstance(threadgroup_bytes, int):
            threadgroup_bytes = {0: threadgroup_bytes}
        lengths = (ctypes.c_uint32 * 32)()
        for i, n_bytes in threadgroup_bytes.items():
            lengths[i] = n_bytes
        dispatch = _Run(
            kernel=number,
            by_threads=by_threads,
            grid=_triple(groups),
            threads=_triple(threads),
            binds=binds,
            n_binds=len(buffers),
            indirect=ranges,
            n_indirect=len(indirect),
            constants=values,
            n_constants=len(constants or {}),
            threadgroup_bytes=lengths,
            seed=seed,
            hazard=hazard,
            n_workers=n_workers,
        )
        status = runtime().msl_dispatch(self._handle, ctypes.byref(dispatch))
        error = runtime().msl_error().decode()
        # numpy gives the memory of the copies, and of arrays that die, to others.
        for slot, array in zip(buffers, kept, strict=True):
            if array is not buffers[slot] and not isinstance(buffers[slot], tuple):
                forget(array)
            if slot in unwritten:
                runtime().msl_mark_written(array.ctypes.data, array.nbytes)
        if status:
            raise KernelError(error)


def _triple(size: int | Sequence[int]) -> Any:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return (ctypes.c_uint32 * 3)(*(*sizes, 1, 1)[:3])
