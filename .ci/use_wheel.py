"""Run by smoke_wheel.py inside the new environment: what was installed is whole and works."""

import re
import sys
from importlib import metadata
from pathlib import Path

import torch

import jepakit

loaded = [name for name in ("timm", "torchvision", "sklearn", "matplotlib") if name in sys.modules]
assert not loaded, f"import jepakit loaded {loaded}"
package = Path(jepakit.__file__).parent
assert Path(sys.prefix) in package.parents, f"{package} is not the installed wheel"
assert (package / "py.typed").is_file(), "py.typed is not in the wheel"

about = metadata.metadata("jepakit")
assert about["License-Expression"] == "Apache-2.0", about["License-Expression"]
assert about["Version"] == jepakit.__version__, (about["Version"], jepakit.__version__)
files = [str(file) for file in metadata.files("jepakit")]
assert any(file.endswith("licenses/LICENSE") for file in files), "LICENSE is not in the wheel"
top = {file.split("/")[0] for file in files if not file.startswith("..")}
assert all(name.startswith("jepakit") for name in top), f"the wheel also installs {top}"

readme = Path(sys.argv[1]).read_text()
loop, *_ = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
scope = {"loader": list(torch.rand(2, 2, 3, 224, 224)), "total_steps": 2}
exec(compile(loop, "README.md", "exec"), scope)
assert torch.isfinite(scope["loss"])
assert scope["teacher"].step == 2
print(f"jepakit {about['Version']}: the README's loop ran, loss {scope['loss'].item():.4f}")
