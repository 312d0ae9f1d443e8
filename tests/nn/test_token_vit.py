"""Laws 3 to 6, 12 and 13 for `TokenViT`: one to three axes, every kind of position, registers."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jepakit import EMATeacher, MaskedPredictor, TokenSet, put_tokens, take_tokens
from jepakit.nn import Block, Frames, Patches, TokenViT, Tubelets
from jepakit.nn.positions import grid_coordinates, rotary_features, rotate_halves, sincos_features
from jepakit.optim import param_groups
from jepakit.testing import assert_encoder_contract, assert_predictor_contract

DIM = 48
# Number of axes: grid, patch, channels.
AXES = {1: ((7,), (4,), 2), 2: ((3, 4), (4, 2), 1), 3: ((2, 3, 4), (2, 4, 3), 3)}
POSITIONS = ["rope", "sincos", "learned"]
KINDS = [(axes, position) for axes in AXES for position in POSITIONS] + [(3, "rope-vjepa2")]
KIND = pytest.mark.parametrize(("axes", "position"), KINDS)
CLIPS = pytest.mark.parametrize("position", [*POSITIONS, "rope-vjepa2"])


def embedding(axes: int, dim: int = DIM) -> nn.Module:
    _, patch, channels = AXES[axes]
    if axes == 1:
        return Frames(patch[0], dim, channels)
    return (Patches if axes == 2 else Tubelets)(patch, dim, channels)


def build(axes: int = 3, **changes: Any) -> TokenViT:
    """Equal weights for equal arguments, whatever the grid, far from the initial values."""
    arguments: dict[str, Any] = {"grid_size": AXES[axes][0], "embed_dim": DIM} | changes
    arguments = {"depth": 2, "num_heads": 4} | arguments
    torch.manual_seed(0)
    arguments.setdefault("embed", embedding(axes, arguments["embed_dim"]))
    encoder = TokenViT(**arguments).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            scale = 0.5 if name in ("registers", "position_table") else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return encoder


def inputs_on(axes: int, grid: tuple[int, ...], batch: int = 2) -> torch.Tensor:
    _, patch, channels = AXES[axes]
    sides = [cells * length for cells, length in zip(grid, patch, strict=True)]
    return torch.randn(batch, channels, *sides)


@pytest.mark.parametrize("num_registers", [0, 2])
@KIND
def test_contract(axes, position, num_registers) -> None:
    """Laws 3 to 6, ragged contexts and the cost of hidden tokens included."""
    encoder = TokenViT(
        AXES[axes][0],
        DIM,
        2,
        4,
        embed=embedding(axes),
        position=position,
        num_registers=num_registers,
        repeat_registers=num_registers > 0 and axes == 3,
        layer_scale=1e-5 if axes == 2 else None,
        drop_path=0.3,
    )
    assert_encoder_contract(encoder.train(), inputs_on(axes, AXES[axes][0], 3))


@pytest.mark.parametrize("num_registers", [0, 2])
@KIND
def test_a_context_is_attention_masked_to_it(
    axes, position, num_registers, ragged, hide_keys, assert_close
) -> None:
    """Law 3, other half: `encoder(x, S)` is the full forward in which only S is a key."""
    grid = AXES[axes][0]
    encoder = build(axes, position=position, num_registers=num_registers)
    inputs, context = inputs_on(axes, grid, 3), ragged(grid, 3, at_least=1)
    out = encoder(inputs, context)
    registers = torch.ones(3, num_registers, dtype=torch.bool)
    hide_keys(torch.cat([registers, context.to_mask()], dim=1))
    expected = take_tokens(encoder(inputs), context)
    assert_close(out, expected)


def test_equals_timms_blocks_on_a_sincos_table(assert_close) -> None:
    """An independent forward: torch's convolution, the published table, timm's blocks."""
    encoder = build(position="sincos", num_registers=2, uniform_power=False)
    clip = inputs_on(3, (2, 3, 4))
    x = encoder.embed.proj(clip).flatten(2).mT
    x = x + sincos_features(grid_coordinates((2, 3, 4)), DIM, uniform_power=False)
    x = torch.cat([encoder.registers.expand(2, -1, -1), x], dim=1)
    for block in encoder.blocks:
        theirs = timm.models.vision_transformer.Block(DIM, 4, qkv_bias=True).eval()
        theirs.load_state_dict(block.state_dict())
        x = theirs(x)
    assert_close(encoder(clip), encoder.norm(x)[:, 2:])


def test_rotary_positions_turn_queries_and_keys(assert_close) -> None:
    """Registers do not turn. Trap: rows of the table shifted by the registers."""
    encoder = build(depth=1, num_registers=2)
    clip, block = inputs_on(3, (2, 3, 4)), encoder.blocks[0]
    x = torch.cat([encoder.registers.expand(2, -1, -1), encoder.embed(clip)], dim=1)
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 4, 12)).permute(2, 0, 3, 1, 4)
    table = rotary_features(grid_coordinates((2, 3, 4)), 12)[None]
    q, k = (torch.cat([y[:, :, :2], rotate_halves(y[:, :, 2:], table)], dim=2) for y in (q, k))
    attended = ((q @ k.mT / 12**0.5).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    x = x + block.attn.proj(attended)
    x = x + block.mlp(block.norm2(x))
    assert_close(encoder(clip), encoder.norm(x)[:, 2:])


@CLIPS
def test_repeated_registers(position, ragged, assert_close) -> None:
    """`repeat_registers` is the same as as many copies of each register as there are steps."""
    clip, context = inputs_on(3, (2, 3, 4)), ragged((2, 3, 4), 2)
    weighed = build(position=position, num_registers=3, repeat_registers=True)
    copies = build(position=position, num_registers=6)
    state = weighed.state_dict() | {"registers": weighed.registers.repeat(2, 1)}
    copies.load_state_dict(state)
    once = build(position=position, num_registers=3)
    once.load_state_dict(weighed.state_dict())
    for seen in (None, context):
        assert_close(weighed(clip, seen), copies(clip, seen))
        assert (weighed(clip, seen) - once(clip, seen)).abs().max() > 1e-3


@pytest.mark.parametrize("position", ["rope", "sincos", "rope-vjepa2"])
@settings(max_examples=8)
@given(st.tuples(*[st.tuples(*[st.integers(1, 4)] * 3)] * 2), st.integers(0, 2**32 - 1))
def test_equals_an_encoder_built_for_the_grid(position, ragged, grids, seed) -> None:
    """One encoder takes clips of any length and size, bit by bit as one that was built for them."""
    torch.manual_seed(seed)
    own, other = grids
    encoder, alone = (
        build(grid_size=other, position=position),
        build(grid_size=own, position=position),
    )
    clip, context = inputs_on(3, own), ragged(own, 2)
    assert encoder.grid_size_of(clip.shape[2:]) == own
    assert torch.equal(encoder(clip), alone(clip))
    assert torch.equal(encoder(clip, context), alone(clip, context))


def test_longer_than_the_table_of_positions(assert_close) -> None:
    encoder = build(1, depth=1)
    series = torch.randn(1, 2, 4 * 300)
    assert_close(encoder(series), build(1, depth=1, grid_size=(300,))(series))


def test_learned_positions_are_of_one_grid_alone() -> None:
    encoder = build(position="learned")
    with pytest.raises(ValueError, match=r"have the grid \(3, 3, 4\): must have the grid \(2, 3,"):
        encoder(inputs_on(3, (3, 3, 4)))
    with pytest.raises(ValueError, match=r"learned positions; .*position='rope' or 'sincos'"):
        encoder.grid_size_of((6, 12, 12))


@KIND
def test_checkpointing(axes, position, ragged, assert_close) -> None:
    """Gradients with a ragged context equal those without; each block is computed twice."""
    encoder = build(axes, position=position, num_registers=1, drop_path=0.3).train()
    inputs, context = inputs_on(axes, AXES[axes][0], 3), ragged(AXES[axes][0], 3, at_least=1)
    runs: list[None] = []
    for block in encoder.blocks:
        block.attn.register_forward_pre_hook(lambda *_: runs.append(None))
    gradients = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        runs.clear()
        torch.manual_seed(2)
        encoder(inputs, context).square().sum().backward()
        assert len(runs) == 2 * (1 + enable)
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        assert_close(with_it, without)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("position", [*POSITIONS, "rope-vjepa2"])
def test_checkpointing_of_a_predictor(position, joint, ragged, assert_close) -> None:
    """Trap: the argument `first` of the last block is lost when it is computed again."""
    torch.manual_seed(0)
    predictor = MaskedPredictor(
        (2, 3, 4), 8, predictor_embed_dim=48, depth=2, num_heads=4, position=position, joint=joint
    )
    context, targets = ragged((2, 3, 4), 3, at_least=1), ragged((2, 3, 4), 3, 2)
    features = torch.randn(*context.shape, 8)
    runs: list[None] = []
    for block in predictor.blocks:
        block.attn.register_forward_pre_hook(lambda *_: runs.append(None))
    gradients = []
    for enable in (False, True):
        predictor.set_grad_checkpointing(enable)
        predictor.zero_grad()
        runs.clear()
        predictor(features, context, targets).square().sum().backward()
        assert len(runs) == 2 * (1 + enable)
        gradients.append([parameter.grad for parameter in predictor.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        assert_close(with_it, without)


@pytest.mark.parametrize(
    "positions",
    [{"position": "rope-vjepa2"}, {"uniform_power": False}, {"predictor_embed_dim": 40}],
)
@pytest.mark.parametrize("joint", [False, True])
def test_predictors_with_positions_of_clips(positions, joint) -> None:
    """The contract; 40 features are no multiple of 6."""
    arguments = {"predictor_embed_dim": 48, "depth": 2, "num_heads": 4} | positions
    predictor = MaskedPredictor((2, 3, 4), 8, joint=joint, **arguments)
    assert_predictor_contract(predictor, (2, 3, 4), 8)
    assert_predictor_contract(predictor, (3, 2, 2), 8)


@pytest.mark.parametrize("num_registers", [0, 2])
def test_intermediates_and_pooling(num_registers, ragged, assert_close) -> None:
    encoder = build(depth=3, num_registers=num_registers)
    clip, context = inputs_on(3, (2, 3, 4)), ragged((2, 3, 4), 2)
    assert encoder.num_prefix_tokens == num_registers and encoder.embed_dim == DIM
    for seen in (None, context):
        first, last = encoder.forward_intermediates(clip, [0, -1], seen, norm=True)
        assert torch.equal(last, encoder(clip, seen))
        shallow = build(depth=1, num_registers=num_registers)
        shallow.load_state_dict(
            {k: v for k, v in encoder.state_dict().items() if ".1." not in k and ".2." not in k}
        )
        assert_close(first, shallow(clip, seen))
        (raw,) = encoder.forward_intermediates(clip, [-3], seen)
        raw = raw if seen is None else put_tokens(raw, seen)
        normed = encoder.norm(raw)
        normed = normed if seen is None else take_tokens(normed, seen)
        assert_close(first, normed)
        assert torch.equal(encoder.extract_features(clip, seen, pool=None), encoder(clip, seen))
    assert_close(encoder.extract_features(clip), encoder(clip).mean(dim=1))
    alone = TokenSet.from_mask(context.to_mask()[:1], (2, 3, 4))
    pooled = encoder.extract_features(clip[:1], alone)
    assert_close(pooled, encoder(clip[:1], alone).mean(dim=1))
    nothing = TokenSet.from_mask(torch.zeros(2, 24, dtype=torch.bool), (2, 3, 4))
    assert (encoder.extract_features(clip, nothing) == 0).all()


class OwnEmbedding(nn.Module):
    """A convolution over overlapping windows, without `grid_size_of`."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv1d(2, DIM, 5, stride=4, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).mT


def test_an_embedding_of_the_user(ragged, assert_close) -> None:
    encoder = build(1, embed=OwnEmbedding())
    series, context = torch.randn(2, 2, 28), ragged((7,), 2)
    x = take_tokens(encoder.embed(series), context)
    assert encoder(series, context).shape == x.shape
    # Wrapped, an embedding is run on the whole input, and the context is taken from its output.
    plain = build(1)
    wrapped = copy.deepcopy(plain)
    wrapped.embed = nn.Sequential(wrapped.embed)
    for seen in (None, context):
        assert_close(wrapped(series, seen), plain(series, seen))
    with pytest.raises(
        ValueError, match=r"embed returned \(2, 8, 48\): must be \[b N d\] = \(2, 7"
    ):
        encoder(torch.randn(2, 2, 32))


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 96},
        {"depth": 3},
        {"num_heads": 2},
        {"mlp_ratio": 2.0},
        {"drop_path": 0.9},
        {"layer_scale": 0.5},
        {"position": "rope-vjepa2"},
        {"position": "sincos"},
        {"position": "learned"},
        {"position": "sincos", "uniform_power": False},
        {"num_registers": 1},
        {"num_registers": 1, "repeat_registers": True},
        {"grid_size": (3, 3, 4)},
    ],
)
def test_every_argument_matters(changes) -> None:
    """Law 12. Compared with the same encoder without the last change."""
    before = dict(list(changes.items())[:-1])
    clip = inputs_on(3, (2, 3, 4))
    base, changed = build(**before).train(), build(**changes).train()
    if "grid_size" in changes:
        assert base.grid_size != changed.grid_size
        return
    out, other = base(clip), changed(clip)
    same = len(base.state_dict()) == len(changed.state_dict())
    assert not (same and out.shape == other.shape and torch.allclose(out, other))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_heads": 5}, r"num_heads=5: must divide embed_dim=48"),
        ({"depth": 0}, r"depth=0: must be at least 1"),
        ({"num_registers": -1}, r"num_registers=-1: must be at least 0"),
        ({"repeat_registers": True}, r"repeat_registers=True: must come with registers .*3 axes"),
        ({"depth": 1, "drop_path": 0.1}, r"drop_path=0.1: must be 0 with depth=1"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio=0: must be above 0"),
        ({"uniform_power": False}, r"uniform_power=False: must come with position='sincos'"),
        ({"embed_dim": 52, "position": "sincos", "uniform_power": False}, r"embed_dim=52: must be"),
        ({"embed_dim": 16}, r"head dim 4 \(embed_dim / num_heads\): must be even and at least 6"),
        ({"embed": Tubelets((2, 4, 4), 96)}, r"embed has embed_dim=96: must be embed_dim=48"),
        ({"embed": Patches(4, 48)}, r"embed=Patches: must have the 3 axes of grid_size=\(2, 3, 4"),
        ({"grid_size": (2, 2, 2, 2)}, r"grid_size=\(2, 2, 2, 2\): must have 1 or 2 or 3 axes"),
    ],
)
def test_constructor_errors(changes, text) -> None:
    with pytest.raises(ValueError, match=text):
        build(**changes)


@pytest.mark.no_hook
def test_errors_of_types() -> None:
    with pytest.raises(TypeError, match=r"embed: must be a module, such as Tubelets.*got function"):
        TokenViT((4,), DIM, 1, 4, embed=build)
    with pytest.raises(ValueError, match=r"position='alibi': must be one of 'sincos', 'rope', "):
        build(position="alibi")
    with pytest.raises(TypeError, match="enable=1: must be a bool"):
        build().set_grad_checkpointing(1)


@pytest.mark.parametrize(
    ("shape", "context", "text"),
    [
        (
            (2, 2, 3, 12, 12),
            None,
            r"inputs \(2, 2, 3, 12, 12\): must have 3 channels on axis 1; mo",
        ),
        ((0, 3, 4, 12, 12), None, r"inputs \(0, 3, 4, 12, 12\): must be a batch"),
        ((2, 3, 4, 13, 12), None, r"size \(4, 13, 12\): must be multiples of the patch size"),
        ((2, 3, 12, 12), None, r"size \(12, 12\): must have 3 axes beside batch and channels"),
        (
            (2, 3, 4, 12, 12),
            (2, 3, 3),
            r"context is on the grid \(2, 3, 3\): must be on the inputs'",
        ),
        (
            (3, 3, 4, 12, 12),
            (2, 3, 4),
            r"context \(2, 24\): must be \[batch, n\] of the batch size 3",
        ),
    ],
)
def test_errors_of_inputs(shape, context, text) -> None:
    encoder = build()
    context = None if context is None else TokenSet.full(context, (2,))
    with pytest.raises(ValueError, match=text):
        encoder(torch.zeros(shape), context)


def test_inputs_that_are_not_finite_are_refused() -> None:
    clip = inputs_on(3, (2, 3, 4))
    clip[1, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="inputs: must be finite"):
        build()(clip)


@CLIPS
def test_state_copies_and_training(position, ragged) -> None:
    """Laws 9 and 13: state dict, deepcopy, pickle, teacher; every parameter gets a gradient."""
    encoder = build(position=position, num_registers=2, repeat_registers=True)
    clip, context = inputs_on(3, (2, 3, 4)), ragged((2, 3, 4), 2, at_least=1)
    expected = encoder(clip, context)
    assert ("position_table" in encoder.state_dict()) == (position == "learned")
    loaded = TokenViT(
        (2, 3, 4),
        DIM,
        2,
        4,
        embed=embedding(3),
        position=position,
        num_registers=2,
        repeat_registers=True,
    ).eval()
    loaded.load_state_dict(encoder.state_dict())
    teacher = EMATeacher(encoder, momentum=0.9)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder)), loaded, teacher):
        assert torch.equal(other(clip, context), expected)
    expected.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())
    teacher.update(encoder)
    decayed = param_groups(encoder, 0.05)[0]["params"]
    names = {
        name
        for name, parameter in encoder.named_parameters()
        if any(parameter is each for each in decayed)
    }
    assert "embed.proj.weight" in names and not names & {"registers", "position_table"}


@CLIPS
def test_the_first_weights_are_timms(position) -> None:
    torch.manual_seed(0)
    encoder = TokenViT(
        (8, 14, 14),
        192,
        2,
        3,
        embed=Tubelets((2, 16, 16), 192),
        position=position,
        num_registers=4,
    )
    for name, parameter in encoder.named_parameters():
        if name.startswith("embed"):
            continue  # as torch initialises a convolution
        if name == "registers":
            assert parameter.abs().max() < 1e-5
        elif name == "position_table" or parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert (parameter == float("norm" in name and "weight" in name)).all(), name


@CLIPS
def test_fixed_positions_survive_where_modules_are_moved(position) -> None:
    """Traps: positions of a module from the meta device; rounded ones after half precision."""
    expected, clip = build(position=position), inputs_on(3, (2, 3, 4))
    with torch.device("meta"):
        later = TokenViT((2, 3, 4), DIM, 2, 4, embed=embedding(3), position=position).eval()
        assert later(clip.to("meta")).shape == (2, 24, DIM)
    later.to_empty(device="cpu").load_state_dict(expected.state_dict())
    rounded = copy.deepcopy(expected).bfloat16()
    out = rounded(clip.bfloat16())
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
    rounded.float().load_state_dict(expected.state_dict())
    for encoder in (later, rounded):
        assert torch.equal(encoder(clip), expected(clip))


def test_names_are_those_of_published_weights() -> None:
    """Blocks as in timm, V-JEPA and V-JEPA 2, so that weights are renamed at the front only."""
    names = set(build(num_registers=1, depth=1).state_dict())
    block = {f"blocks.0.{name}" for name in Block(DIM, 4).state_dict()}
    assert names == block | {
        "embed.proj.weight",
        "embed.proj.bias",
        "registers",
        "norm.weight",
        "norm.bias",
    }
    layers = {name.removeprefix("blocks.0.").rpartition(".")[0] for name in block}
    assert layers == {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}
