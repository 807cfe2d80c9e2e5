"""Writes csrc/quant/tables.inc from the grids that the `gguf` package publishes.

Usage: python tools/make_quant_tables.py > csrc/quant/tables.inc   (needs gguf and numpy)
"""

import numpy as np
from gguf import quants


def packed_grid(cls: type, bits: int) -> list[int]:
    """Grid entries with each value replaced by its rank, `bits` bits apiece, first value lowest."""
    cls.init_grid()
    grid = cls.grid.reshape(cls.grid_shape).astype(np.int64)
    rank = np.searchsorted(np.array(cls.grid_map), grid)
    shifts = np.arange(grid.shape[1]) * bits
    return [int(v) for v in (rank << shifts).sum(axis=1)]


def print_table(name: str, comment: str, values: list[int]) -> None:
    print(f"\n// {comment}")
    print(f"alignas(64) inline constexpr uint16_t {name}[{len(values)}] = {{")
    for i in range(0, len(values), 16):
        print("    " + ", ".join(f"0x{v:04x}" for v in values[i : i + 16]) + ",")
    print("};")


print("// Written by tools/make_quant_tables.py; do not edit.")
print_table(
    "kGridIQ2_XXS", "Eight 2-bit ranks an entry, into kGridValues2.", packed_grid(quants.IQ2_XXS, 2)
)
print_table(
    "kGridIQ2_S", "Eight 2-bit ranks an entry, into kGridValues2.", packed_grid(quants.IQ2_S, 2)
)
print_table(
    "kGridIQ3_XXS", "Four 3-bit ranks an entry, into kGridValues3.", packed_grid(quants.IQ3_XXS, 3)
)
