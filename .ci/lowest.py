"""Write `.ci/lowest.txt`: the lower bounds of pyproject.toml, as pins for pip.

`python .ci/lowest.py` writes the file; a policy test fails while the two differ. It pins what users
install and what the tests import, and, by hand, what old versions of these need at an old version
too. Linters, type checkers and documentation tools stay the newest.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / ".ci" / "lowest.txt"
EXTRAS = ("plots", "evaluation", "testing", "examples", "test")
# Newer ones warn of what scikit-learn 1.4 and matplotlib 3.8 call; warnings fail tests.
COMPANIONS = {"scipy==1.12", "pyparsing==3.1"}
HEADER = "# Written by .ci/lowest.py from the lower bounds in pyproject.toml.\n"


def lowest() -> str:
    """The text of the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    pins = set(COMPANIONS)
    for requirement in wanted:
        if requirement.startswith("jepakit["):
            continue  # an extra that is listed itself
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if not match:
            sys.exit(f"pyproject.toml: {requirement!r}: must have the form name>=version")
        pins.add(f"{match[1]}=={match[2]}")
    return HEADER + "".join(f"{pin}\n" for pin in sorted(pins))


if __name__ == "__main__":
    FILE.write_text(lowest())
    print(FILE.relative_to(ROOT))
