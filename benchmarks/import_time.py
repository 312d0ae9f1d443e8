"""Time of `import jepakit` beside `import torch`, in fresh processes that take turns.

    python benchmarks/import_time.py --rounds 15

jepakit imports torch, so the ratio is at least 1; subpackages that need more (data, evaluation,
interop, plots, testing) are imported at their first use.
"""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="processes of each kind")
    rounds = parser.parse_args().rounds
    seconds("jepakit")  # compiles the files
    pairs = [(seconds("torch"), seconds("jepakit")) for _ in range(rounds)]
    for name, times in zip(("torch", "jepakit"), zip(*pairs, strict=True), strict=True):
        print(f"import {name:<8} median {statistics.median(times):.2f} s, least {min(times):.2f} s")
    ratio = statistics.median(jepakit / torch for torch, jepakit in pairs)
    print(f"ratio, median of pairs: {ratio:.3f}")


if __name__ == "__main__":
    main()
