"""device.mm compiles and links for macOS on Apple silicon, and sends only messages that Metal has.

The compiler is that of the ziglang package, which brings the system's headers; Metal and Foundation
are ours (tests/metal_emu/device/sysroot, and macos/ for linking). A Mac builds against its own.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.metal_emu.device import build

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="a Mac links the real thing")

TARGET = "aarch64-macos.14.0"
STUBS = build.HERE / "macos"
DEVICE = build.ENGINE / "backend/metal/device.mm"
FRAMEWORKS = ["Metal", "Foundation", "CoreFoundation", "CoreGraphics"]
# Of the C++ and unwinding libraries, whose names depend on the compiler's inlining.
CPLUSPLUS = ("__Z", "___cxa", "___gxx", "__Unwind", "___clang")


class MachO(NamedTuple):
    cpu: int
    kind: int
    undefined: set[str]
    libraries: list[str]
    min_macos: tuple[int, int]
    signed: bool
    sections: dict[str, bytes]


def read(path: Path) -> MachO:
    """The parts of a 64-bit Mach-O file that the tests look at."""
    data = path.read_bytes()
    magic, cpu, _, kind, n_commands = struct.unpack_from("<5I", data)
    assert magic == 0xFEEDFACF
    undefined, libraries, sections = set(), [], {}
    min_macos, signed, at = (0, 0), False, 32
    for _ in range(n_commands):
        command, size = struct.unpack_from("<II", data, at)
        if command == 0x19:  # LC_SEGMENT_64
            (n,) = struct.unpack_from("<I", data, at + 64)
            for i in range(n):
                entry = at + 72 + 80 * i
                name = data[entry : entry + 16].rstrip(b"\0").decode()
                (length,) = struct.unpack_from("<Q", data, entry + 40)
                (offset,) = struct.unpack_from("<I", data, entry + 48)
                sections[name] = data[offset : offset + length]
        elif command == 0x2:  # LC_SYMTAB
            symbols, n, strings, _ = struct.unpack_from("<4I", data, at + 8)
            for i in range(n):
                name_at, kind_of, _, _, _ = struct.unpack_from("<IBBHQ", data, symbols + 16 * i)
                if kind_of & 0xE0 == 0 and kind_of & 0x0E == 0:  # no debugging, no section
                    end = data.index(b"\0", strings + name_at)
                    undefined.add(data[strings + name_at : end].decode())
        elif command == 0xC:  # LC_LOAD_DYLIB
            (name_at,) = struct.unpack_from("<I", data, at + 8)
            libraries.append(data[at + name_at : at + size].split(b"\0")[0].decode())
        elif command == 0x32:  # LC_BUILD_VERSION
            (version,) = struct.unpack_from("<I", data, at + 12)
            min_macos = (version >> 16, version >> 8 & 255)
        elif command == 0x1D:  # LC_CODE_SIGNATURE
            signed = True
        at += size
    return MachO(cpu, kind, undefined, libraries, min_macos, signed, sections)


def zig(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("objects")
    flags = ["-target", TARGET, "-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror"]
    # A call to what macOS 14 lacks must be guarded by @available.
    flags += ["-Werror=unguarded-availability", f"-I{build.ENGINE}"]
    objc = ["-x", "objective-c++", "-fobjc-arc", f"-I{build.HERE / 'sysroot'}"]
    out = {name: folder / f"{name}.o" for name in ("device", "main")}
    zig("c++", *flags, *objc, "-c", DEVICE, "-o", out["device"])
    zig("c++", *flags, "-c", STUBS / "main.cpp", "-o", out["main"])
    return out


def test_links_for_apple_silicon(objects: dict[str, Path], tmp_path: Path) -> None:
    # What is left for the C++ library of the system to define; the rest must be in the stubs.
    needed = set().union(*(read(path).undefined for path in objects.values()))
    names = sorted(name for name in needed if name.startswith(CPLUSPLUS))
    stub = tmp_path / "libc++.tbd"
    stub.write_text(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-macos ]\n"
        "install-name: '/usr/lib/libc++.1.dylib'\nexports:\n"
        f"  - targets: [ arm64-macos ]\n    symbols: [ {', '.join(names)} ]\n...\n"
    )
    program = tmp_path / "program"
    frameworks = [x for name in FRAMEWORKS for x in ("-framework", name)]
    libraries = [f"-F{STUBS}", *frameworks, STUBS / "libobjc.tbd", stub]
    zig("cc", "-target", TARGET, *objects.values(), *libraries, "-o", program)

    made = read(program)
    assert made.cpu == 0x0100000C  # arm64
    assert made.kind == 2  # an executable
    assert made.min_macos == (14, 0)
    assert made.signed  # Apple silicon runs nothing without a signature
    for name in FRAMEWORKS:
        assert any(f"/{name}.framework/" in library for library in made.libraries)
    apple = {n for n in made.undefined if n.startswith(("_MTL", "_NS", "_OBJC_CLASS", "___CF"))}
    assert apple == {
        "_MTLCreateSystemDefaultDevice",
        "_OBJC_CLASS_$_MTLCompileOptions",
        "_OBJC_CLASS_$_MTLComputePipelineDescriptor",
        "_OBJC_CLASS_$_MTLFunctionConstantValues",
        "_OBJC_CLASS_$_MTLResidencySetDescriptor",
        "_OBJC_CLASS_$_NSString",
        "___CFConstantStringClassReference",
    }


class Message(NamedTuple):
    owner: str
    selector: str
    types: str
    since: tuple[int, ...]


def known() -> list[Message]:
    lines = (build.HERE / "selectors.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return [Message(r[0], r[1], r[2], tuple(map(int, r[3].split(".")))) for r in rows]


def test_every_message_is_known(objects: dict[str, Path]) -> None:
    section = read(objects["device"]).sections["__objc_methname"]
    sent = {name.decode() for name in section.split(b"\0") if name}
    assert len(sent) > 40
    listed = {m.selector for m in known()}
    assert sent - listed == set(), "not in selectors.txt"
    assert listed - sent == set(), "in selectors.txt, and no longer sent"


def test_what_is_newer_than_macos_14_is_about_residency_and_mathematics() -> None:
    newer = {m.selector for m in known() if m.since > (14, 0)}
    assert newer == {
        "newResidencySetWithDescriptor:error:",
        "addResidencySet:",
        "addAllocation:",
        "removeAllocation:",
        "commit",
        "requestResidency",
        "setLabel:",
        "setMathMode:",
        "setMathFloatingPointFunctions:",
    }


def test_an_unguarded_call_is_refused(tmp_path: Path) -> None:
    """The compiler sees what is newer than macOS 14: the check above can fail."""
    source = tmp_path / "unguarded.mm"
    source.write_text(
        "#import <Metal/Metal.h>\nvoid f(MTLCompileOptions *o) { o.mathMode = MTLMathModeSafe; }\n"
    )
    flags = ["-target", TARGET, "-Werror=unguarded-availability", "-fsyntax-only"]
    flags += ["-x", "objective-c++", "-fobjc-arc", f"-I{build.HERE / 'sysroot'}"]
    with pytest.raises(AssertionError, match="only available on macOS 15"):
        zig("c++", *flags, source)


def test_the_simulated_device_has_the_same_types() -> None:
    """It compares its own with those at the call sites of device.mm; this is the third corner."""
    methods = build.Control(build.build()).methods()
    names = {
        "MTLDevice": "FakeDevice",
        "MTLBuffer": "FakeBuffer",
        "MTLLibrary": "FakeLibrary",
        "MTLComputePipelineState": "FakePipeline",
        "MTLCommandQueue": "FakeCommandQueue",
        "MTLCommandBuffer": "FakeCommandBuffer",
        "MTLComputeCommandEncoder": "FakeComputeEncoder",
        "MTLSharedEvent": "FakeSharedEvent",
        "MTLResidencySet": "FakeResidencySet",
    }
    for m in known():
        owner = names.get(m.owner, m.owner)
        assert methods[owner, m.selector] == m.types, m
