"""Build the wheel, install it in an empty environment, and use it there as the README says."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(label: str, *command: object, cwd: Path = ROOT) -> None:
    print(f"--- {label}", flush=True)
    start = time.monotonic()
    # No PYTHONPATH and no type-checking hook: as a user has it.
    drop = {"PYTHONPATH", "JEPAKIT_TYPECHECK"}
    env = {key: value for key, value in os.environ.items() if key not in drop}
    subprocess.run([str(part) for part in command], cwd=cwd, env=env, check=True)
    print(f"    {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    # The wheel is built from the sdist, so that both are known to be complete.
    run("build sdist and wheel", sys.executable, "-m", "build", "--outdir", ROOT / "dist", ROOT)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    # Beside the repository's own builds, not in /tmp, which is often too small for torch (6 GB).
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="smoke-") as folder:
        env = Path(folder) / "venv"
        python = env / "bin" / "python"
        run("empty environment", sys.executable, "-m", "venv", "--without-pip", env)
        quiet = ["--quiet", "--no-compile", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "--python", python]
        run("install the wheel", *pip, "install", *quiet, wheel)
        run("pip check", *pip, "check")
        use = ROOT / ".ci" / "use_wheel.py"
        run("use it", python, "-I", use, ROOT / "README.md", cwd=Path(folder))


if __name__ == "__main__":
    main()
