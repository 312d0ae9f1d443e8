"""The argument checks themselves, where no public function shows all that they decide."""

import re

import numpy as np
import pytest
import torch

from jepakit._checks import as_bool, as_int, as_number, read_switch, type_name

VARIABLE = "JEPAKIT_TEST_SWITCH"


@pytest.mark.parametrize(("value", "on"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_switches(value, on, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert read_switch(VARIABLE) is on


@pytest.mark.parametrize("value", ["true", "True", "yes", "on", "2", " 1", "false"])
def test_other_values_of_a_switch_raise(value, monkeypatch):
    """Trap: a switch that is off for every spelling but one, without a word."""
    monkeypatch.setenv(VARIABLE, value)
    text = f"{VARIABLE}={value!r}: must be '0' or '1', or not be set"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        read_switch(VARIABLE)


def test_a_tensor_where_an_int_belongs_is_not_printed():
    """Trap: `sampler(images)` for `sampler(len(images))` fills the screen with pixels."""
    with pytest.raises(TypeError, match=r"^size: must be an int, got torch\.Tensor$"):
        as_int("size", torch.zeros(2, 3), minimum=1)


@pytest.mark.parametrize("value", [True, False])
def test_bools(value):
    as_bool("flag", value)


@pytest.mark.parametrize(
    ("value", "got"), [(1, "int"), (0, "int"), ("False", "str"), (None, "NoneType")]
)
def test_no_bools(value, got):
    with pytest.raises(TypeError, match=rf"^flag={value!r}: must be a bool, got {got}$"):
        as_bool("flag", value)


def test_type_names_say_their_module():
    """Trap: "must be an int, got float64"."""
    with pytest.raises(TypeError, match=r"^n=.*4.*: must be an int, got numpy\.float64$"):
        as_int("n", np.float64(4), minimum=1)
    with pytest.raises(TypeError, match=r"^x=.*1.*: must be a number, got numpy\.complex64$"):
        as_number("x", np.complex64(1))
    assert type_name([]) == "list"
