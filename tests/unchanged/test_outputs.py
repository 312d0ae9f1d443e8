"""Modules, losses and the rest give what they gave when `outputs.safetensors` was written.

Inputs and parameters come from integer arithmetic (`fixed.py`), and nearly everything is computed
in float64, so that only the numerics of jepakit can differ. Of a large tensor some entries and some
fixed projections are stored; of every tensor the shape and the type. Values agree within 1e-6 of
the largest one that is stored of the tensor (within 1e-12 absolutely where all are zeros); NaN
equals NaN. Bytes of rounded pixels alone may differ by 1e-2 of the largest. What is no tensor
(names, orders, texts) is in `outputs.json` and must be equal.

To write both files anew, from the root: `python -m tests.unchanged.test_outputs --write`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.unchanged.fixed import short
from tests.unchanged.functions import FACTS as FUNCTION_FACTS
from tests.unchanged.functions import FUNCTIONS
from tests.unchanged.modules import MODULES, types
from torch import Tensor

TENSORS = Path(__file__).with_name("outputs.safetensors")
JSON = Path(__file__).with_name("outputs.json")
TOLERANCE = 1e-6
ZERO = 1e-12
# Bytes that are rounded from float32: on another processor a pixel may be one level off.
LOOSER = {"textures": 1e-2}
CASES = MODULES | FUNCTIONS
FACTS = FUNCTION_FACTS | {"types of modules": types}

# Cases that cannot give the stored results with these versions, for reasons outside of jepakit.
LEFT_OUT: dict[str, str] = {}
_exponential = torch.empty(1).exponential_(generator=torch.Generator().manual_seed(5)).item()
if abs(_exponential - 1.027264) > 1e-5:
    reason = "torch 2.6 draws other exponential numbers, of which Gumbel noise is made"
    LEFT_OUT |= dict.fromkeys(["quantizer, drawn", "quantizer, drawn, schedule"], reason)
if tuple(int(part) for part in timm.__version__.split(".")[:3]) < (1, 0, 31):
    LEFT_OUT["encoder, mixed rotary"] = "older timm cannot compute it in float64"


def kind_of(tensor: Tensor) -> str:
    return f"{tensor.dtype}".removeprefix("torch.") + f" {list(tensor.shape)}"


def assert_same(
    name: str, tensor: Tensor, kind: str, expected: Tensor, tolerance: float = TOLERANCE
) -> None:
    assert kind_of(tensor) == kind, name
    actual = short(tensor)
    assert torch.equal(actual.isfinite(), expected.isfinite()), name
    finite = expected.isfinite()
    assert torch.equal(actual[~finite].nan_to_num(), expected[~finite].nan_to_num()), name
    actual, expected = actual[finite], expected[finite]
    if len(expected):
        largest = float(expected.abs().max())
        error = float((actual - expected).abs().max())
        assert error <= tolerance * largest + ZERO, (
            f"{name}: differs by {error:.1e} of {largest:.1e}"
        )


@pytest.fixture(scope="module")
def stored() -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(TENSORS, "pt") as file:
        kinds = json.loads(file.metadata()["kinds"])
        whole = file.get_tensor("values")
    tensors, start = {}, 0
    for name, (_, length) in kinds.items():
        tensors[name] = whole[start : start + length]
        start += length
    return {name: kind for name, (kind, _) in kinds.items()}, tensors


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads(JSON.read_text())


@pytest.mark.parametrize("case", CASES)
def test_outputs(case, stored):
    if case in LEFT_OUT:
        pytest.skip(LEFT_OUT[case])
    kinds, tensors = stored
    found = {f"{case} / {name}": tensor for name, tensor in CASES[case]().items()}
    assert list(found) == [name for name in kinds if name.startswith(f"{case} / ")]
    for name, tensor in found.items():
        assert_same(name, tensor, kinds[name], tensors[name], LOOSER.get(case, TOLERANCE))


@pytest.mark.parametrize("case", FACTS)
def test_facts(case, facts):
    assert FACTS[case]() == facts[case]


def test_nothing_is_stored_that_is_not_computed(stored, facts):
    assert list(dict.fromkeys(name.split(" / ")[0] for name in stored[0])) == list(CASES)
    assert list(facts) == list(FACTS)


def _write() -> None:
    found = {f"{case} / {name}": t for case, run in CASES.items() for name, t in run().items()}
    # One tensor for all: a header for each would take more room than its values.
    values = [short(tensor) for tensor in found.values()]
    kinds = {
        name: (kind_of(tensor), len(value))
        for (name, tensor), value in zip(found.items(), values, strict=True)
    }
    save_file({"values": torch.cat(values)}, TENSORS, {"kinds": json.dumps(kinds)})
    JSON.write_text(json.dumps({case: run() for case, run in FACTS.items()}, indent=1) + "\n")
    print(f"{len(CASES)} cases, {len(found)} tensors, {TENSORS.stat().st_size} bytes")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("--write: today's outputs in place of the stored ones")
    torch.set_num_threads(1)
    _write()
