"""Every constructor argument of `HierarchicalPyramid` matters (law 12); errors; copies (law 13)."""

import copy
import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import jepakit
from jepakit import HierarchicalPyramid, TokenSet
from jepakit.nn import Level

BASE = {"num_levels": 3, "fusion": "fpn-add"}


def outputs(build_pyramid, grid=(5, 6), dim=4, **changes) -> list[Level]:
    torch.manual_seed(0)
    pyramid = build_pyramid(grid, dim, **(BASE | changes))
    torch.manual_seed(1)
    tokens = TokenSet.from_mask(torch.rand(3, 30) < 0.6, (5, 6))
    if grid != (5, 6):
        tokens = TokenSet(tokens.idx, tokens.valid, grid)
    return pyramid(torch.randn(*tokens.shape, dim), tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": (6, 5)},
        {"dim": 5},
        {"num_levels": 2},
        {"pool": "max"},
        {"pool": "conv"},
        {"pool": "attention"},
        {"valid_if": "all"},
        {"fusion": None},
        {"fusion": "fpn-concat"},
        {"upsample": "bilinear"},
        {"projection": "linear"},
        {"norm": "layer"},
    ],
    ids=str,
)
def test_every_argument_matters(changes, build_pyramid) -> None:
    base, changed = outputs(build_pyramid), outputs(build_pyramid, **changes)
    same = len(base) == len(changed) and all(
        a.features.shape == b.features.shape
        and torch.allclose(a.features, b.features, atol=1e-3)
        and torch.equal(a.tokens.idx, b.tokens.idx)
        for a, b in zip(base, changed, strict=True)
    )
    assert not same


def test_one_level_is_what_comes_in() -> None:
    pyramid = HierarchicalPyramid((4, 5), 6, num_levels=1)
    features = torch.randn(2, 20, 6)
    (level,) = pyramid(features)
    assert torch.equal(level.features, features) and level.tokens.grid_size == (4, 5)
    (level,) = HierarchicalPyramid((1, 1), 6, num_levels=1)(features[:, :1])
    assert torch.equal(level.features, features[:, :1])
    projected = HierarchicalPyramid((4, 5), 6, num_levels=1, projection="linear", norm="layer")
    assert not torch.allclose(projected(features)[0].features, features)


def test_grids_halve_upwards() -> None:
    assert HierarchicalPyramid((33, 14), 2, num_levels=7).grid_sizes == (
        (33, 14),
        (17, 7),
        (9, 4),
        (5, 2),
        (3, 1),
        (2, 1),
        (1, 1),
    )
    assert HierarchicalPyramid((8, 7, 5), 2).grid_sizes == ((8, 7, 5), (4, 4, 3), (2, 2, 2))


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("arguments", "changes", "error", "text"),
    [
        (
            ((14, 14), 8),
            {"num_levels": 6},
            ValueError,
            "num_levels=6: the grid (14, 14) is a single cell on level 4, so it has 5 levels",
        ),
        (
            ((1, 1), 8),
            {},
            ValueError,
            "num_levels=3: the grid (1, 1) is a single cell on level 0, so it has 1 levels",
        ),
        (((4, 4), 8), {"num_levels": 0}, ValueError, "num_levels=0: must be at least 1"),
        (((4, 4), 0), {}, ValueError, "dim=0: must be at least 1"),
        (
            (14, 8),
            {},
            TypeError,
            "grid_size=14: must be a sequence of ints, such as (14, 14), got int",
        ),
        (
            ((4, 4), 8),
            {"pool": "mean"},
            ValueError,
            "pool='mean': must be one of 'avg', 'max', 'conv', 'attention'",
        ),
        (
            ((4, 4), 8),
            {"valid_if": "most"},
            ValueError,
            "valid_if='most': must be one of 'any', 'all'",
        ),
        (
            ((4, 4), 8),
            {"fusion": "fpn"},
            ValueError,
            "fusion='fpn': must be one of 'fpn-add', 'fpn-concat', None",
        ),
        (
            ((4, 4), 8),
            {"fusion": "fpn-add", "upsample": "bicubic"},
            ValueError,
            "upsample='bicubic': must be one of 'nearest', 'bilinear'",
        ),
        (
            ((4, 4), 8),
            {"projection": "mlp"},
            ValueError,
            "projection='mlp': must be one of 'linear', None",
        ),
        (((4, 4), 8), {"norm": "batch"}, ValueError, "norm='batch': must be one of 'layer', None"),
        (
            ((4, 4), 8),
            {"upsample": "bilinear"},
            ValueError,
            "upsample='bilinear': takes effect only with a fusion",
        ),
        (
            ((4, 4), 8),
            {"num_levels": 1, "pool": "max"},
            ValueError,
            "pool='max': takes effect only with num_levels above 1",
        ),
        (
            ((4, 4), 8),
            {"num_levels": 1, "valid_if": "all"},
            ValueError,
            "valid_if='all': takes effect only with num_levels above 1",
        ),
        (
            ((4, 4), 8),
            {"num_levels": 1, "fusion": "fpn-add"},
            ValueError,
            "fusion='fpn-add': takes effect only with num_levels above 1",
        ),
        (
            ((4, 4), 1),
            {"norm": "layer"},
            ValueError,
            "norm='layer' with dim=1: must have at least 2 entries to normalise",
        ),
    ],
)
def test_constructor_errors(arguments, changes, error, text) -> None:
    with pytest.raises(error) as raised:
        HierarchicalPyramid(*arguments, **changes)
    assert str(raised.value) == text


@pytest.mark.parametrize("sequence", [list, torch.Size, np.array, OmegaConf.create])
def test_arguments_of_configuration_files(sequence) -> None:
    pyramid = HierarchicalPyramid(sequence([4, 6]), np.int64(8), num_levels=np.int32(2))
    assert repr(pyramid) == repr(HierarchicalPyramid((4, 6), 8, num_levels=2))
    values = (*pyramid.grid_size, pyramid.dim, pyramid.num_levels)
    assert all(type(value) is int for value in values)


SOME = TokenSet(torch.tensor([[0, 5], [2, 3]]), torch.ones(2, 2, dtype=torch.bool), (4, 4))


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("features", "tokens", "error", "text"),
    [
        (
            torch.zeros(2, 15, 8),
            None,
            ValueError,
            "features (2, 15, 8): must hold all 16 positions of the grid (4, 4); pass the tokens "
            "of a part of them",
        ),
        (
            torch.zeros(2, 16, 7),
            None,
            ValueError,
            "features (2, 16, 7): must be [batch, n, 8], the dim that the pyramid was built with",
        ),
        (
            torch.zeros(16, 8),
            None,
            ValueError,
            "features (16, 8): must be [batch, n, 8], the dim that the pyramid was built with",
        ),
        (
            torch.zeros(0, 16, 8),
            None,
            ValueError,
            "features (0, 16, 8): the batch must not be empty",
        ),
        (
            torch.zeros(2, 16, 8, dtype=torch.int64),
            None,
            TypeError,
            "features: must be floating point, got torch.int64",
        ),
        (
            torch.zeros(2, 16, 8),
            SOME,
            ValueError,
            "tokens (2, 2): must list the positions of features (2, 16, 8), so be (2, 16)",
        ),
        (
            torch.zeros(2, 2, 8),
            TokenSet(SOME.idx, SOME.valid, (2, 8)),
            ValueError,
            "tokens is on the grid (2, 8): must be on the pyramid's grid (4, 4)",
        ),
        (
            torch.zeros(2, 2, 8),
            SOME.valid,
            TypeError,
            "tokens: must be a TokenSet, such as masks.context or TokenSet.from_mask(mask, "
            "grid_size), got torch.Tensor",
        ),
    ],
)
def test_call_errors(features, tokens, error, text) -> None:
    with pytest.raises(error) as raised:
        HierarchicalPyramid((4, 4), 8)(features, tokens)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_levels": 2, "pool": "max", "valid_if": "all"}, {"num_levels": 1}],
    ids=str,
)
def test_repr_without_parameters_is_the_call(arguments) -> None:
    pyramid = HierarchicalPyramid((4, 6), 8, **arguments)
    assert not list(pyramid.parameters()) and not list(pyramid.buffers())
    again = eval(repr(pyramid), vars(jepakit))
    assert repr(again) == repr(pyramid)
    assert vars(again).keys() == vars(pyramid).keys()
    for key, value in arguments.items():
        assert getattr(again, key) == value


def test_repr_shows_the_arguments() -> None:
    text = repr(HierarchicalPyramid((4, 6), 8, pool="conv", fusion="fpn-concat", norm="layer"))
    for piece in ("(4, 6), 8", "pool='conv'", "fusion='fpn-concat'", "norm='layer'", "laterals"):
        assert piece in text


EVERYTHING = [
    {"pool": pool, "fusion": fusion, "projection": "linear", "norm": "layer"}
    for pool in ("conv", "attention")
    for fusion in ("fpn-add", "fpn-concat")
]


@pytest.mark.parametrize("arguments", EVERYTHING, ids=lambda a: f"{a['pool']}-{a['fusion']}")
def test_copies_and_state(arguments, build_pyramid, ragged, tmp_path) -> None:
    pyramid = build_pyramid((5, 6), **arguments)
    torch.save(pyramid.state_dict(), tmp_path / "pyramid.pt")
    loaded = build_pyramid((5, 6), **arguments)
    loaded.load_state_dict(torch.load(tmp_path / "pyramid.pt", weights_only=True))
    tokens = ragged((5, 6), 3)
    features = torch.randn(*tokens.shape, 6)
    expected = pyramid(features, tokens)
    for other in (loaded, copy.deepcopy(pyramid), pickle.loads(pickle.dumps(pyramid))):
        for level, wanted in zip(other(features, tokens), expected, strict=True):
            assert torch.equal(level.features, wanted.features)


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_copies_without_parameters(pool) -> None:
    pyramid = HierarchicalPyramid((5, 6), 6, pool=pool)
    features = torch.randn(2, 30, 6)
    for other in (copy.deepcopy(pyramid), pickle.loads(pickle.dumps(pyramid))):
        assert torch.equal(other(features)[2].features, pyramid(features)[2].features)


@pytest.mark.parametrize("arguments", EVERYTHING, ids=lambda a: f"{a['pool']}-{a['fusion']}")
def test_every_parameter_learns(arguments, ragged) -> None:
    """Trap: an unused parameter stops DDP. At the initial values, and finite."""
    pyramid = HierarchicalPyramid((5, 6), 6, **arguments)
    tokens = ragged((5, 6), 4, at_least=4)
    levels = pyramid(torch.randn(*tokens.shape, 6), tokens)
    sum((level.features * torch.randn_like(level.features)).sum() for level in levels).backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def test_a_level_is_a_pytree() -> None:
    levels = HierarchicalPyramid((4, 4), 2)(torch.randn(1, 16, 2))
    leaves, structure = torch.utils._pytree.tree_flatten(levels)
    assert len(leaves) == 9 and all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = torch.utils._pytree.tree_unflatten(leaves, structure)
    assert isinstance(again[2], Level) and again[2].tokens.grid_size == (1, 1)
