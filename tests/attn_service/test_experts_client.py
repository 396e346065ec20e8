"""The parts of the experts client that need no service; tests/expert_service has the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trimaran.errors import KernelError, PeerError
from trimaran.wire import Status
from trimaran_attn.experts_client.bf16 import from_bf16, to_bf16
from trimaran_attn.experts_client.statuses import status_error


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bf16_rounds_as_torch_does(values: list[float]) -> None:
    x = np.array(values, np.float32)
    expected = torch.from_numpy(x.copy()).to(torch.bfloat16)
    ours = from_bf16(to_bf16(x))
    np.testing.assert_array_equal(ours, expected.float().numpy())


def test_bf16_keeps_nan_and_infinity() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3.4e38], np.float32)
    y = from_bf16(to_bf16(x))
    assert np.isnan(y[0])
    np.testing.assert_array_equal(y[1:], [np.inf, -np.inf, np.inf])


@pytest.mark.parametrize("status", [code for name, code in vars(Status).items() if name.isupper() and code])
def test_every_status_is_an_error_that_names_the_service(status: int) -> None:
    error = status_error(status, "ipc:///x.sock", 7)
    assert isinstance(error, PeerError if status == Status.SHUTTING_DOWN else KernelError)
    assert "ipc:///x.sock" in str(error)
    assert "unknown" not in str(error)


def test_an_unknown_status_is_an_error_too() -> None:
    assert "unknown status 99" in str(status_error(99, "ipc:///x.sock", 7))
    assert "its own words" in str(status_error(Status.INTERNAL, "ipc:///x.sock", 7, "its own words"))
