"""The error that a contract is expected to raise."""

import re

import pytest

from jepakit.testing._violation import Law


def violates(law: Law, text: str = "") -> pytest.RaisesExc:
    """An `AssertionError` that starts with the law and matches `text`, a regular expression."""
    return pytest.raises(AssertionError, match=f"^{re.escape(law)}: (.|\n)*{text}")
