"""Print what `make test COVERAGE=1` measured: the total, and the ten least covered files."""

import json
import os
import tempfile
from pathlib import Path

from coverage import Coverage

COUNT = 10


def main() -> None:
    measured = Coverage()
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        total = measured.json_report(outfile=os.fspath(path))
        files = json.loads(path.read_text())["files"]
    print(f"\nlines of jepakit that the tests run: {total:.1f} %")
    least = sorted(files, key=lambda name: files[name]["summary"]["percent_covered"])
    for name in least[:COUNT]:
        share, missing = files[name]["summary"]["percent_covered"], files[name]["missing_lines"]
        shown = ", ".join(map(str, missing[:12])) + (", ..." if len(missing) > 12 else "")
        print(f"{share:6.1f} %  {name}" + (f"  lines {shown}" if missing else ""))


if __name__ == "__main__":
    main()
