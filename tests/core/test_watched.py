"""A thread beside a call says when the call does not end, also while it holds the GIL."""

from __future__ import annotations

import ctypes

import pytest

from lmdeploy_c import _C


def hold_the_gil(microseconds: int) -> None:
    ctypes.PyDLL(None).usleep(microseconds)


def test_a_call_that_holds_the_gil_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    assert _C.watched(lambda: hold_the_gil(300_000), 0.05, "it hangs\n") is None
    assert capfd.readouterr().err == "it hangs\n"


def test_a_call_in_time_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    assert _C.watched(lambda: "value", 60, "it hangs\n") == "value"
    assert capfd.readouterr().err == ""


def test_what_the_call_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        _C.watched(lambda: 1 / 0, 60, "")
    with pytest.raises(TypeError):
        _C.watched(None, 60, "")  # type: ignore[type-var]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e7])
def test_odd_times(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        _C.watched(lambda: None, seconds, "")
