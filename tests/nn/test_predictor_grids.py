"""One `MaskedPredictor` for every grid: images of several sizes, clips of several lengths."""

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jepakit import MaskedPredictor, TokenSet
from jepakit.testing import assert_predictor_contract

FIXED = pytest.mark.parametrize("position", ["sincos", "rope"])
SHAPE = {"predictor_embed_dim": 48, "depth": 2, "num_heads": 4}


def build(grid=(4, 5), **arguments) -> MaskedPredictor:
    """Equal weights for equal arguments, whatever the grid, far from the initial values."""
    torch.manual_seed(0)
    predictor = MaskedPredictor(grid, 10, **(SHAPE | arguments)).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return predictor


def inputs(grid: tuple[int, ...]) -> tuple[torch.Tensor, TokenSet, TokenSet]:
    """A context of 3 and 2 targets of 2 positions, the first and the last among them."""
    last = torch.Size(grid).numel() - 1
    context = TokenSet(torch.tensor([[0, 1, last]]), torch.ones(1, 3, dtype=torch.bool), grid)
    targets = TokenSet(
        torch.tensor([[[2, 3], [0, last]]]), torch.ones(1, 2, 2, dtype=torch.bool), grid
    )
    features = torch.randn(1, 3, 10, generator=torch.Generator().manual_seed(last))
    return features, context, targets


@FIXED
@pytest.mark.parametrize("joint", [False, True])
@settings(max_examples=8)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3).flatmap(
        lambda axes: st.tuples(*[st.tuples(*[st.integers(1, 6)] * axes)] * 3)
    ),
)
def test_equals_a_predictor_built_for_the_grid(position, joint, ragged, seed, grids) -> None:
    """Trap: rows of a table that was made for another width of the grid. Equal bit by bit, with
    gradients, also after work on other grids."""
    torch.manual_seed(seed)
    own, *others = grids
    shared = build(own, position=position, joint=joint)
    for grid in [*others, own, others[0]]:
        here, asked = ragged(grid, 3, at_least=1), ragged(grid, 3, 2)
        features = torch.randn(*here.shape, 10)
        alone = build(grid, position=position, joint=joint)
        outputs = []
        for predictor in (shared, alone):
            predictor.zero_grad()
            out = predictor(features, here, asked)
            out.square().sum().backward()
            outputs += [[out, *(parameter.grad for parameter in predictor.parameters())]]
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
        assert torch.equal(shared.predict_grid(features, here), alone.predict_grid(features, here))


@FIXED
def test_contract_on_another_grid(position) -> None:
    assert_predictor_contract(MaskedPredictor((4, 5), 10, position=position, **SHAPE), (7, 3), 10)


@FIXED
@pytest.mark.parametrize("grid", [(300, 2), (2, 300)])
def test_sides_beyond_the_table(position, grid) -> None:
    shared, alone = build((4, 5), position=position), build(grid, position=position)
    assert max(grid) > len(shared.position_table) // 2
    assert torch.equal(shared(*inputs(grid)), alone(*inputs(grid)))
    assert torch.equal(shared(*inputs((3, 3))), alone(*inputs((3, 3))))


@FIXED
def test_a_position_means_the_same_on_every_grid(position) -> None:
    """Row 1, column 2 is where it is, whatever lies to the right of it and below."""
    predictor = build(position=position)
    features, outputs = torch.randn(1, 2, 10), []
    for rows, columns in [(2, 3), (5, 9)]:
        valid = torch.ones(1, 2, dtype=torch.bool)
        here = TokenSet(torch.tensor([[0, columns + 1]]), valid, (rows, columns))
        asked = TokenSet(torch.tensor([[[2, columns + 2]]]), valid[None], (rows, columns))
        outputs.append(predictor(features, here, asked))
    assert torch.equal(*outputs)


def test_context_and_targets_are_on_one_grid() -> None:
    """Trap: 12 positions both on (3, 4) and on (4, 3), which shapes cannot tell apart."""
    features, context, targets = inputs((3, 4))
    other = TokenSet(targets.idx, targets.valid, (4, 3))
    rule = r"targets is on the grid \(4, 3\), context on \(3, 4\): must be on one grid"
    with pytest.raises(ValueError, match=rule):
        build()(features, context, other)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"position": "learned"},
            r"must be on one of \(\(4, 5\),\), which have learned positions; ",
        ),
        (
            {"num_levels": 2},
            r"must be on one of \(\(4, 5\), \(2, 3\)\), which have a known level; ",
        ),
    ],
)
def test_other_grids_are_refused(arguments, text) -> None:
    """Trap: rows of learned positions that are those of other places. The error says what helps."""
    predictor = build(**arguments)
    predictor(*inputs((4, 5)))
    with pytest.raises(ValueError, match=rf"context is on the grid \(5, 4\): {text}.*'sincos'"):
        predictor(*inputs((5, 4)))
    with pytest.raises(ValueError, match=r"context is on the grid \(5, 4\)"):
        predictor.predict_grid(torch.zeros(1, 20, 10), TokenSet.full((5, 4), (1,)))


@FIXED
def test_no_state_remains_of_a_grid(position) -> None:
    """Copies, checkpoints and threads have nothing to know of the grids that came before."""
    predictor = build(position=position)
    before = {name: tensor.clone() for name, tensor in [*predictor.named_buffers()]}
    attributes = set(vars(predictor)) | {"_buffers"}
    names = predictor.state_dict().keys()
    expected = {grid: predictor(*inputs(grid)).detach() for grid in [(4, 5), (6, 3), (300, 2)]}
    assert predictor.state_dict().keys() == names and "position_table" not in names
    assert set(vars(predictor)) == attributes
    assert all(torch.equal(before[name], tensor) for name, tensor in predictor.named_buffers())
    loaded = build((6, 3), position=position)
    loaded.load_state_dict(predictor.state_dict())
    for other in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor)), loaded):
        for grid, output in expected.items():
            assert torch.equal(other(*inputs(grid)), output)


@FIXED
def test_threads_on_different_grids(position) -> None:
    """Law 15. Trap: a table of the last grid on the module, which another thread then reads."""
    predictor = build(position=position)
    grids = [(4, 5), (6, 3), (2, 9), (8, 8)]
    expected = [predictor(*inputs(grid)).detach() for grid in grids]
    wrong = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(predictor(*inputs(grids[number])), expected[number]):
                    wrong.append(grids[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class OnMetaAlone(TorchDispatchMode):
    """Raises at an operation on the CPU, and so at a copy from there to the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves([args, kwargs, out]):
            assert not isinstance(leaf, torch.Tensor) or leaf.is_meta, func
        return out


@FIXED
def test_other_grids_survive_where_modules_are_moved(position) -> None:
    """Traps: positions of a module from the meta device; rounded ones after half precision; a table
    that is copied to the device in every step, or a host synchronisation."""
    expected = build((6, 3), position=position)
    with torch.device("meta"):
        later = MaskedPredictor((4, 5), 10, position=position, **SHAPE).eval()
    features, context, targets = inputs((6, 3))
    on_meta = features.to("meta"), context.to("meta"), targets.to("meta")
    with OnMetaAlone():
        assert later(*on_meta).shape == (1, 2, 2, 10)
    later.to_empty(device="cpu").load_state_dict(expected.state_dict())
    rounded = build((4, 5), position=position)
    rounded.bfloat16()(features.bfloat16(), context, targets)
    rounded.float().load_state_dict(expected.state_dict())
    for predictor in (later, rounded):
        assert torch.equal(predictor(*inputs((6, 3))), expected(*inputs((6, 3))))


@pytest.mark.no_hook
@FIXED
def test_compiles_once_for_each_of_two_grids_and_no_more(position) -> None:
    """Law 14. Trap: a cache of tables, whose filling compiles every grid twice."""
    torch.compiler.reset()
    predictor, counter = build(position=position), CompileCounter()
    compiled = torch.compile(predictor, fullgraph=True, backend=counter)
    for grid in [(4, 5), (6, 3), (4, 5), (6, 3), (3, 6), (7, 2)]:
        torch.testing.assert_close(compiled(*inputs(grid)), predictor(*inputs(grid)))
        # The second grid compiles for sides of any size.
        assert counter.frame_count <= 1 + (grid != (4, 5) or counter.frame_count == 2)
    assert counter.frame_count == 2


@pytest.mark.no_hook
def test_compiles_with_gradients_and_autocast() -> None:
    torch.compiler.reset()
    predictor = build(position="rope")
    compiled = torch.compile(predictor, fullgraph=True, backend="aot_eager")
    for grid in [(4, 5), (6, 3)]:
        for autocast in (False, True):
            gradients = []
            for call in (compiled, predictor):
                predictor.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    out = call(*inputs(grid))
                out.float().square().sum().backward()
                gradients.append([parameter.grad.clone() for parameter in predictor.parameters()])
            for a, b in zip(*gradients, strict=True):
                tolerance = (0.1 if autocast else 1e-4) * b.abs().max().item()
                torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
