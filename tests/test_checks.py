"""The argument checks themselves, where no public function shows all that they decide."""

import re

import numpy as np
import pytest
import torch

from jepakit._checks import (
    as_bool,
    as_choice,
    as_fraction,
    as_int,
    as_ints,
    as_number,
    read_switch,
    type_name,
)

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


@pytest.mark.parametrize("value", [0.1, 0.15, 0.2, 0.3, 0.6, 0.996])
def test_float32_is_the_decimal_that_it_prints(value):
    """Trap: a coverage of `np.float32(0.1)` is 10.000000149 tokens of 100, so 11."""
    assert as_number("x", np.float32(value)) == value
    assert as_number("x", np.float64(value)) == value
    assert type(as_number("x", np.float16(1))) is float


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan")])
def test_what_is_not_finite_is_named(value):
    with pytest.raises(ValueError, match=r"^x.*: must be finite"):
        as_number("x", value)


def test_numbers_in_errors_are_exact():
    """Trap: "fraction=1: must lie in [0, 1]" for 1.0000001."""
    with pytest.raises(ValueError, match=re.escape("x=1.0000001: must lie in [0, 1]")):
        as_fraction("x", 1.0000001)


def test_a_choice_is_stored_as_it_is_listed():
    choice = as_choice("mode", np.str_("pad"), ("pad", "trim"))
    assert type(choice) is str and choice == "pad"
    for value in (torch.ones(2), np.ones(2), 1, None):
        with pytest.raises(ValueError, match=r"^mode.*: must be one of 'pad', 'trim'$"):
            as_choice("mode", value, ("pad", "trim"))


@pytest.mark.parametrize("value", ["ab", b"ab", bytearray(b"ab"), {1: 2}, {1, 2}, torch.ones(2), 4])
def test_no_sequences(value):
    with pytest.raises(TypeError, match=r"(?s)^x.*: must be a sequence of ints, got "):
        as_ints("x", value)
