"""Writes metal/tables.h from csrc/quant/tables.inc: the same numbers as Metal constants.

Usage: python tools/make_metal_tables.py > metal/tables.h
"""

from __future__ import annotations

import re
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "csrc/quant/tables.inc"
TABLE = re.compile(
    r"// (?P<comment>[^\n]*)\n"
    r"alignas\(64\) inline constexpr uint16_t (?P<name>\w+)\[(?P<n>\d+)\] = "
    r"\{(?P<values>[^}]*)\};"
)

HEADER = """\
// Written by tools/make_metal_tables.py from csrc/quant/tables.inc; do not edit.
#pragma once

#include <metal_stdlib>
"""


def metal_tables(source: str) -> str:
    """The text of metal/tables.h."""
    out = HEADER
    for table in TABLE.finditer(source):
        values = re.findall(r"0x[0-9a-f]+", table["values"])
        assert len(values) == int(table["n"]), table["name"]
        lines = [", ".join(values[i : i + 12]) for i in range(0, len(values), 12)]
        out += f"\n// {table['comment']}\n"
        out += f"constant constexpr ushort {table['name']}[{len(values)}] = {{\n    "
        out += ",\n    ".join(lines) + "};\n"
    return out


if __name__ == "__main__":
    print(metal_tables(SOURCE.read_text()), end="")
