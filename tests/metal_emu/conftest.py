"""Libraries of kernels/, plain and checked; what the checker finds fails the test that caused it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent / "kernels"
# On a Mac the kernels run on the device: the emulator has nothing to do there.
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture(scope="session")
def library() -> Callable:
    """library(name, race=False): kernels/<name>.metal, compiled."""
    from tests.metal_emu.library import Library

    @functools.cache
    def load(name: str, race: bool = False) -> Library:
        return Library(KERNELS / f"{name}.metal", race=race)

    return load


@pytest.fixture(autouse=True)
def no_findings() -> Iterator[None]:
    """Tests that provoke findings take them with reports()."""
    from tests.metal_emu.library import reports

    reports()
    yield
    assert reports() == []
