"""Token ids from arrays of other libraries, which may lie elsewhere or be of other things than integers."""

from __future__ import annotations

import ctypes

import grebe
import pytest


@pytest.fixture
def session():
    with grebe.Model.load(n_threads=1) as model, model.session(n_ctx=64) as session:
        yield session


class DLTensor(ctypes.Structure):
    """The C structure of DLPack 0.x, with its manager."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Exporter:
    """An array of one integer that says of itself what it is told to."""

    def __init__(self, data: int, device: int = 1, lanes: int = 1) -> None:
        self.shape = (ctypes.c_int64 * 1)(1)
        self.tensor = DLTensor(data, device, 0, 1, 0, 32, lanes, self.shape, None, 0, None, None)

    def __dlpack__(self, **_: object) -> object:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = (
            ctypes.py_object,
            (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
        )
        return new(ctypes.addressof(self.tensor), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.device_type, 0


def test_arrays_of_other_devices_are_not_read(session):
    value = ctypes.c_int32(7)
    address = ctypes.addressof(value)
    session.prefill(Exporter(address))
    assert session.tokens == [7]
    for device, name in ((2, "CUDA"), (8, "Metal"), (10, "ROCm"), (99, "type 99")):
        with pytest.raises(grebe.InvalidArgumentError, match=f"tokens is an array on .*{name}"):
            session.prefill(Exporter(16, device))  # an address that no process has
    with pytest.raises(grebe.InvalidArgumentError, match="vectors of 2"):
        session.prefill(Exporter(address, lanes=2))
    assert session.tokens == [7]


@pytest.mark.parametrize("tokens", [{1, 2}, frozenset({1}), {1: 2}])
def test_sets_and_dicts_are_no_sequences(session, tokens):
    with pytest.raises(grebe.InvalidArgumentError, match="a sequence of token ids is expected"):
        session.prefill(tokens)
