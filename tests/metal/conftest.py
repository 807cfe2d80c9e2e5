"""The Metal backend under test: on a Mac the real device, elsewhere the simulated one.

The simulated device (tests/metal_emu) runs the kernels' own text on the CPU. It is built when a test
first asks for it, and a failure to build it fails the tests. What it finds fault with, in a kernel or
in how the backend calls it, fails the test that is running.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import pytest
from grebe import _engine

ON_A_MAC = sys.platform == "darwin"
# Lanes of a SIMD-group and threadgroups run in an order that the seed shuffles.
SEEDS = [] if ON_A_MAC else [1, 2, 3]


@pytest.fixture(scope="session")
def simulator() -> dict[str, str]:
    """Environment in which the engine finds the simulated device; empty on a Mac."""
    if ON_A_MAC:
        return {}
    from tests.metal_emu.device import build

    variables = build.environment()
    # The device's own compiler is asked for long after this; only the first of them changes what
    # backend="auto" means, so that is set for the length of a test at most.
    os.environ.update({k: v for k, v in variables.items() if k != "GREBE_TEST_METAL_DEVICE"})
    return variables


@pytest.fixture(scope="session")
def control(simulator: dict[str, str]):
    """Settings and findings of the simulated device (tests/metal_emu/device); None on a Mac."""
    if ON_A_MAC:
        return None
    from tests.metal_emu.device import build

    return build.Control(simulator["GREBE_TEST_METAL_DEVICE"])


@pytest.fixture
def fake(control):
    """Settings of the simulated device: fake["seed"] = 2. All are set back after the test."""
    if control is None:
        pytest.skip("steers the simulated device")
    yield control
    control.reset()


def set_device(control, *, seed: int, race: bool) -> None:
    if control is not None:
        control["seed"] = seed
        control["race"] = int(race)


@pytest.fixture
def metal_device(simulator: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For the length of the test, backend="metal" is there (and "auto" means it)."""
    for name, value in simulator.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def backend_ops(simulator: dict[str, str]) -> Callable[..., _engine.BackendOps]:
    """backend_ops(exact, race): single ops on the device; the same object for equal arguments."""
    made: dict[tuple[bool, bool], _engine.BackendOps] = {}

    def make(exact: bool = True, race: bool = False) -> _engine.BackendOps:
        if (exact, race) not in made:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in simulator.items():
                    patch.setenv(name, value)
                made[exact, race] = _engine.BackendOps("metal", exact=exact)
        return made[exact, race]

    return make


@pytest.fixture
def metal(backend_ops, control) -> _engine.BackendOps:
    """Ops of the device in float32."""
    set_device(control, seed=1, race=False)
    return backend_ops()


@pytest.fixture
def metal_fast(backend_ops, control) -> _engine.BackendOps:
    """Ops of the device as models use them: half-precision tiles are allowed."""
    set_device(control, seed=1, race=False)
    return backend_ops(exact=False)


@pytest.fixture(params=[f"seed {seed}" for seed in SEEDS] + ["device" if ON_A_MAC else "checker"])
def checked(request: pytest.FixtureRequest, backend_ops, control) -> Iterator[_engine.BackendOps]:
    """Ops in float32 under three orders of execution, and under the checker of memory accesses."""
    race = request.param == "checker"
    seed = int(request.param.removeprefix("seed ")) if request.param.startswith("seed") else 1
    set_device(control, seed=seed, race=race)
    yield backend_ops(race=race)
    set_device(control, seed=1, race=False)


@pytest.fixture(scope="session")
def cpu() -> _engine.BackendOps:
    """The same ops on the CPU, in float32."""
    return _engine.BackendOps("cpu")


@pytest.fixture(autouse=True)
def no_findings(request: pytest.FixtureRequest) -> Iterator[None]:
    """The simulated device finds nothing wrong during a test."""
    uses_device = {"control", "simulator"} & set(request.fixturenames)
    control = request.getfixturevalue("control") if uses_device else None
    yield
    if control is not None:
        found = control.reports()
        assert not found, "\n".join(found[:20])
