"""How the tests of the contracts say what is to be found."""

import re

import pytest

from jepakit.testing.breach import Law


def breach(law: Law, text: str = "") -> pytest.RaisesExc:
    """An `AssertionError` that starts with the law and holds the text, a regular expression."""
    return pytest.raises(AssertionError, match=f"^{re.escape(law)}: (.|\n)*{text}")
