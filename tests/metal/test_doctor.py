"""grebe doctor on the device: every op runs and is right."""

import pytest
from grebe import doctor

OPS = sorted({case.op for case in doctor.cases()})


@pytest.mark.parametrize("op", OPS)
def test_ops(metal_device, control, op):
    # Of each op one small case in each arithmetic: the others are as slow as the simulator.
    chosen = {case.exact: case for case in reversed(doctor.choose([op]))}
    for result in doctor.examine("metal", chosen.values()):
        assert result.ok, result
