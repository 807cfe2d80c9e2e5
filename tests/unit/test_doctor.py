"""grebe doctor: every op of the CPU backend passes, and what is wrong is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from grebe import _engine, doctor
from grebe.cli import main
from grebe.errors import BackendError


def test_the_cpu_backend_is_right(capsys):
    assert main(["doctor", "--backend", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["system"]["backend"].startswith("cpu: ")
    assert report["system"]["reference"].startswith("cpu: scalar")
    assert len(report["results"]) == len(list(doctor.cases()))
    assert all(r["ok"] and r["error"] <= r["tolerance"] for r in report["results"])


def test_table(capsys):
    assert main(["doctor", "--backend", "cpu", "--op", "norm", "--op", "route"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("op "))
    assert {line.split()[0] for line in lines[start + 1 :]} == {"norm", "route"}
    assert all(" ok " in line for line in lines[start + 1 :])


@pytest.mark.parametrize("wrong", [1e-3, np.nan, np.inf])
def test_a_wrong_number_is_found(capsys, monkeypatch, wrong):
    class Wrong(doctor.Ops):
        def rms_norm(self, *args):
            out = super().rms_norm(*args)
            if "scalar" not in self.description:
                out[0, 3] += wrong
            return out

    if _engine.available_isas() == ["scalar"]:
        pytest.fail("this test tells the two backends apart by their instruction sets")
    monkeypatch.setattr(doctor, "Ops", Wrong)
    assert main(["doctor", "--backend", "cpu", "--op", "norm"]) == 1
    out, err = capsys.readouterr()
    assert out.count("FAIL") == 2
    assert err == "grebe: 2 of 2 cases are wrong on this machine\n"


def test_an_op_that_fails_is_a_row(capsys, monkeypatch):
    class Failing(doctor.Ops):
        def route(self, *args):
            if "scalar" not in self.description:
                raise BackendError("the device stopped", op="route")
            return super().route(*args)

    monkeypatch.setattr(doctor, "Ops", Failing)
    assert main(["doctor", "--backend", "cpu", "--op", "route"]) == 1
    out = capsys.readouterr().out
    assert out.count("FAIL") == 2
    assert "the device stopped" in out


def test_unknown_op(capsys):
    assert main(["doctor", "--backend", "cpu", "--op", "nope"]) == 2
    assert "the ops are attention, embed" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", _engine.dtypes())
def test_random_weights_are_finite_and_moderate(dtype):
    rng = np.random.default_rng(0)
    data = doctor.random_weight(rng, dtype, 16, 512)
    scale = np.full(4, 119, np.uint8) if dtype == "F8_E4M3" else None
    values = _engine.dequantize(dtype, data, 16, 512, scale)
    assert np.isfinite(values).all()
    assert 0.01 < np.sqrt((values.astype(np.float64) ** 2).mean()) < 100
