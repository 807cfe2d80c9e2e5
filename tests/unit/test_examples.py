"""Every example in a docstring, and the README's Python, runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import grebe
import pytest

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(grebe.__path__, "grebe.")
    if m.name not in ("grebe.__main__", "grebe._engine")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_package_docstring():
    assert doctest.testmod(grebe).failed == 0


def test_readme():
    path = Path(__file__).parents[2] / "README.md"
    result = doctest.testfile(str(path), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    assert result.attempted > 5
