"""Law 13 of samplers: what `deepcopy`, `pickle` and `repr` give draws the same."""

import copy
import inspect
import pickle
import sys
from typing import Any

import jepakit.masking
from jepakit.testing.breach import Law, fail
from jepakit.testing.draws import drawn_by, same_masks

__all__: list[str] = []


def check_copies(sampler: Any, batch_size: int, seed: int) -> None:
    expected = drawn_by(sampler, batch_size, seed)
    twins = {"deepcopy": copy.deepcopy(sampler)}
    if _importable(sampler):
        try:
            twins["pickle"] = pickle.loads(pickle.dumps(sampler))
        except Exception as error:
            fail(Law.COPIES, f"pickle, as DataLoader workers need it, raised {error!r}")
    text = repr(sampler)
    try:
        twins[f"eval({text!r})"] = eval(text, _names(sampler))
    except (SyntaxError, NameError):
        pass  # no expression, or of names that are not to be had here
    except Exception as error:
        fail(Law.COPIES, f"repr {text!r} looks like a call, and evaluating it raised {error!r}")
    for how, twin in twins.items():
        # An object without an `==` of its own equals itself alone.
        comparable = any("__eq__" in vars(kind) for kind in type(sampler).__mro__[:-1])
        if comparable and twin != sampler:
            fail(Law.COPIES, f"{how} gave {twin!r}, which is not equal to {sampler!r}")
        if not callable(twin) or not same_masks(drawn_by(twin, batch_size, seed), expected):
            fail(Law.COPIES, f"what {how} gave draws other masks from the same generator")


def _importable(sampler: Any) -> bool:
    definition = sampler if inspect.isroutine(sampler) else type(sampler)
    found: Any = sys.modules.get(definition.__module__ or "")
    for name in definition.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is definition


def _names(sampler: Any) -> dict[str, Any]:
    home = sys.modules.get(type(sampler).__module__)
    return {**vars(jepakit.masking), **(vars(home) if home else {})}
