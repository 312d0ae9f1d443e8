"""Arguments that `MultiBlockMask` rejects, and those made from I-JEPA's configuration files."""

import re

import pytest
import torch

from jepakit import MultiBlockMask


def raises(error: type[Exception], text: str) -> pytest.RaisesExc:
    return pytest.raises(error, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"grid_size": (0, 4)}, "grid_size=(0, 4): every side must be at least 1"),
        ({"num_targets": 0}, "num_targets=0: must be at least 1"),
        ({"target_scale": (0.0, 0.2)}, "target_scale[0]=0: must lie in (0, 1]"),
        ({"target_scale": (0.1, 1.2)}, "target_scale[1]=1.2: must lie in (0, 1]"),
        (
            {"target_scale": (0.2, 0.1)},
            "target_scale=(0.2, 0.1): the low end must not exceed the high end",
        ),
        ({"target_scale": (float("nan"), 0.2)}, "target_scale[0]=nan: must lie in (0, 1]"),
        ({"target_aspect_ratio": (-1.0, 1.0)}, "target_aspect_ratio[0]=-1: must be above 0"),
        (
            {"target_aspect_ratio": (1.5, 0.75)},
            "target_aspect_ratio=(1.5, 0.75): the low end must not exceed the high end",
        ),
        (
            {"target_aspect_ratio": (1.0, float("inf"))},
            "target_aspect_ratio[1]=inf: must be finite",
        ),
        ({"context_scale": (0.85, 1.01)}, "context_scale[1]=1.01: must lie in (0, 1]"),
        ({"min_context_coverage": -0.1}, "min_context_coverage=-0.1: must lie in [0, 1]"),
        ({"min_context_coverage": 1.5}, "min_context_coverage=1.5: must lie in [0, 1]"),
        ({"context_length": 0}, "context_length=0: must be at least 1"),
    ],
)
def test_values(arguments, text):
    with raises(ValueError, text):
        MultiBlockMask(**{"grid_size": (8, 8)} | arguments)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"grid_size": 8},
            TypeError,
            "grid_size=8: must be a sequence of ints, such as (14, 14), got int",
        ),
        (
            {"grid_size": [8, 8.0]},
            TypeError,
            "grid_size=[8, 8.0]: must be a sequence of ints, such as (14, 14), got float in it",
        ),
        ({"num_targets": 4.0}, TypeError, "num_targets=4.0: must be an int, got float"),
        ({"num_targets": True}, TypeError, "num_targets=True: must be an int, got bool"),
        (
            {"target_scale": 0.15},
            TypeError,
            "target_scale=0.15: must be a pair of numbers (low, high), got float",
        ),
        (
            {"target_scale": (0.1, 0.15, 0.2)},
            TypeError,
            "target_scale=(0.1, 0.15, 0.2): must be a pair of numbers (low, high), got 3 entries",
        ),
        (
            {"context_scale": ("a", "b")},
            TypeError,
            "context_scale[0]='a': must be a number, got str",
        ),
        (
            {"min_context_coverage": "0.25"},
            TypeError,
            "min_context_coverage='0.25': must be a number, got str",
        ),
        (
            {"allow_target_overlap": "no"},
            TypeError,
            "allow_target_overlap='no': must be a bool, got str",
        ),
        (
            {"allow_target_overlap": 1},
            TypeError,
            "allow_target_overlap=1: must be a bool, got int",
        ),
        (
            {"target_size_per": "image"},
            ValueError,
            "target_size_per='image': must be one of 'batch', 'sample'",
        ),
        (
            {"context_length": "cut"},
            ValueError,
            "context_length='cut': must be 'fixed', 'pad', 'trim' or an int of at least 1",
        ),
        (
            {"context_length": 4.0},
            TypeError,
            "context_length=4.0: must be 'fixed', 'pad', 'trim' or an int of at least 1",
        ),
        (
            {"context_length": True},
            TypeError,
            "context_length=True: must be 'fixed', 'pad', 'trim' or an int of at least 1",
        ),
    ],
)
def test_kinds(arguments, error, text):
    with raises(error, text):
        MultiBlockMask(**{"grid_size": (8, 8)} | arguments)


def test_no_unknown_arguments():
    """Trap: a configuration key that is read nowhere."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'min_keep'"):
        MultiBlockMask((8, 8), min_keep=4)
    with pytest.raises(TypeError, match="positional argument"):
        MultiBlockMask((8, 8), 4)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_empty_batches(batch_size):
    with raises(ValueError, f"batch_size={batch_size}: must be at least 1"):
        MultiBlockMask((8, 8))(batch_size)


@pytest.mark.no_hook
def test_batch_size_of_another_kind():
    with raises(TypeError, "batch_size=2.0: must be an int, got float"):
        MultiBlockMask((8, 8))(2.0)


@pytest.mark.no_hook
def test_generators_of_another_kind():
    """Trap: a seed in the generator's place."""
    hint = "for a seed, torch.Generator().manual_seed(seed)"
    with raises(TypeError, f"generator=0: must be a torch.Generator or None, got int; {hint}"):
        MultiBlockMask((8, 8))(2, generator=0)


@pytest.mark.parametrize("shape", [(0, 13), (2, 12)])
def test_tables_of_uniforms(shape):
    sampler = MultiBlockMask((8, 8), context_length="pad")
    assert sampler.num_uniforms == 13
    with raises(ValueError, f"uniforms {shape}: must be [batch, 13], with a batch of at least 1"):
        sampler.from_uniforms(torch.rand(shape))


def test_ijepa_config():
    published = {
        "enc_mask_scale": [0.85, 1.0],
        "pred_mask_scale": [0.15, 0.2],
        "aspect_ratio": [0.75, 1.5],
        "nenc": 1,
        "npred": 4,
        "min_keep": 10,
        "allow_overlap": False,
    }
    assert MultiBlockMask.from_ijepa_config((14, 14), **published) == MultiBlockMask(
        (14, 14), min_context_coverage=10 / 196, context_length="trim"
    )
    assert MultiBlockMask.from_ijepa_config((14, 14)) == MultiBlockMask(
        (14, 14), min_context_coverage=10 / 196, context_length="trim"
    )


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("enc_mask_scale", (0.7, 0.9), "context_scale", (0.7, 0.9)),
        ("pred_mask_scale", [0.1, 0.12], "target_scale", (0.1, 0.12)),
        ("aspect_ratio", (1.0, 2.0), "target_aspect_ratio", (1.0, 2.0)),
        ("npred", 2, "num_targets", 2),
        ("min_keep", 49, "min_context_coverage", 0.25),
        ("target_size_per", "sample", "target_size_per", "sample"),
        ("context_length", 10, "context_length", 10),
        ("context_subset", "random", "context_subset", "random"),
    ],
)
def test_every_ijepa_key_matters(key, value, field, expected):
    sampler = MultiBlockMask.from_ijepa_config((14, 14), **{key: value})
    assert getattr(sampler, field) == expected
    assert sampler != MultiBlockMask.from_ijepa_config((14, 14))


@pytest.mark.parametrize("min_keep", range(1, 150, 7))
def test_min_keep_is_exact(min_keep):
    """A floor of min_keep / N must not lose a patch, or ask for one more, by rounding."""
    sampler = MultiBlockMask.from_ijepa_config((14, 14), min_keep=min_keep)
    assert sampler.min_context_tokens == min_keep


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"allow_overlap": True},
            "allow_overlap=True: must be False; the context never contains its targets",
        ),
        ({"nenc": 2}, "nenc=2: must be 1; call the sampler once for each context"),
        ({"nenc": 0}, "nenc=0: must be at least 1"),
        ({"min_keep": 0}, "min_keep=0: must be at least 1"),
        ({"min_keep": 200}, "min_keep=200: must be at most the grid's 196 patches"),
        ({"npred": 0}, "npred=0: must be at least 1"),
    ],
)
def test_ijepa_errors(arguments, text):
    with raises(ValueError, text):
        MultiBlockMask.from_ijepa_config((14, 14), **arguments)


@pytest.mark.no_hook
@pytest.mark.parametrize("key", ["enc_mask_scale", "pred_mask_scale", "aspect_ratio"])
@pytest.mark.parametrize(
    ("value", "got"),
    [(0.75, "float"), ("ab", "str"), ([0.1, 0.2, 0.3], "3 entries"), ([], "0 entries")],
)
def test_ijepa_pairs(key, value, got):
    with raises(TypeError, f"{key}={value!r}: must be a pair of numbers (low, high), got {got}"):
        MultiBlockMask.from_ijepa_config((14, 14), **{key: value})


@pytest.mark.no_hook
@pytest.mark.parametrize("value", ["False", 0, None])
def test_ijepa_overlap_is_a_bool(value):
    """Trap: the string "False" of a command line, which is true."""
    text = f"allow_overlap={value!r}: must be a bool, got {type(value).__name__}"
    with raises(TypeError, text):
        MultiBlockMask.from_ijepa_config((14, 14), allow_overlap=value)
