"""Published V-JEPA and V-JEPA 2 compute the same here; what is saved is what was loaded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.interop import published_video as published
from tests.interop.conftest import same, scramble, snapshot
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from jepakit import EMATeacher, MaskedPredictor, Masks, TokenSet, linear
from jepakit.interop import load_vjepa, load_vjepa2, vjepa2_checkpoint, vjepa_checkpoint
from jepakit.nn import TokenViT, Tubelets

LOAD = {"vjepa": load_vjepa, "vjepa2": load_vjepa2}
SAVE = {"vjepa": vjepa_checkpoint, "vjepa2": vjepa2_checkpoint}
POSITION = {"vjepa": "sincos", "vjepa2": "rope-vjepa2"}
KINDS = pytest.mark.parametrize("kind", ["vjepa", "vjepa2"])
PARTS = ("encoder", "predictor", "target_encoder")
TABLES = ("module.backbone.pos_embed", "module.backbone.predictor_pos_embed")


def build_encoder(kind: str, **changes: Any) -> TokenViT:
    arguments: dict[str, Any] = {
        "grid_size": published.GRID,
        "embed_dim": published.DIM,
        "depth": published.DEPTH,
        "num_heads": published.HEADS,
        "position": POSITION[kind],
    } | changes
    arguments.setdefault("embed", Tubelets(published.TUBELET, arguments["embed_dim"]))
    return TokenViT(**arguments).eval()


def build_predictor(kind: str, **changes: Any) -> MaskedPredictor:
    arguments: dict[str, Any] = {
        "grid_size": published.GRID,
        "encoder_dim": published.DIM,
        "predictor_embed_dim": published.PREDICTOR_DIM,
        "depth": published.PREDICTOR_DEPTH,
        "num_heads": published.PREDICTOR_HEADS,
        "num_mask_tokens": published.MASK_TOKENS[kind],
        "position": POSITION[kind],
    }
    return MaskedPredictor(**(arguments | changes)).eval()


def build(kind: str) -> dict[str, Any]:
    """Parts whose weights are not those of any checkpoint."""
    encoder, predictor = build_encoder(kind), build_predictor(kind)
    scramble(encoder)
    teacher = EMATeacher(encoder, linear(0.5, 1.0, steps=1000))
    scramble(teacher.module)
    scramble(predictor)
    return {"encoder": encoder, "predictor": predictor, "teacher": teacher}


@pytest.fixture
def ragged() -> Masks:
    order = torch.rand(2, 3, 48).argsort(dim=-1)
    counts = torch.tensor([[9, 5, 3], [6, 2, 7]])
    sets = TokenSet.from_mask(order < counts[..., None], published.GRID)
    return Masks(context=sets[:, 0], targets=sets[:, 1:])


@pytest.fixture
def clips() -> Tensor:
    sides = [n * side for n, side in zip(published.GRID, published.TUBELET, strict=True)]
    return torch.randn(2, 3, *sides)


def listed(tokens: TokenSet) -> list[list[int]]:
    return [idx[valid].tolist() for idx, valid in zip(tokens.idx, tokens.valid, strict=True)]


def close(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * scale)


@KINDS
@torch.no_grad()
def test_encoder_and_teacher_are_the_published_ones(kind, clips, ragged) -> None:
    """Trap: rows and columns or frames swapped, another rotation, positions by rank in the set."""
    parts, checkpoint = build(kind), published.checkpoint(kind)
    LOAD[kind](checkpoint, **parts)
    for part, key in (("encoder", "encoder"), ("teacher", "target_encoder")):
        state = published.plain(checkpoint[key])
        out = parts[part](clips, ragged.context)
        for sample, visible in enumerate(listed(ragged.context)):
            expected = published.encode(kind, state, clips[sample], visible)
            close(out[sample, : len(visible)], expected)
        close(parts[part](clips)[0], published.encode(kind, state, clips[0], list(range(48))))


@KINDS
@pytest.mark.parametrize("joint", [False, True])
@torch.no_grad()
def test_predictor_is_the_published_one(kind, joint, ragged) -> None:
    """Each set with each mask token. Trap: the first token for all, tokens in another order."""
    predictor, checkpoint = build_predictor(kind, joint=joint), published.checkpoint(kind)
    LOAD[kind](checkpoint, predictor=predictor)
    state = published.plain(checkpoint["predictor"])
    context = torch.randn(*ragged.context.shape, published.DIM)
    targets = ragged.targets[:, :1]  # one set: the union of the blocks, as published
    for token in range(published.MASK_TOKENS[kind]):
        pred = predictor(context, ragged.context, targets, mask_token=token)
        for sample, visible in enumerate(listed(ragged.context)):
            target = listed(targets[sample])[0]
            given = context[sample, : len(visible)]
            expected = published.predict(kind, state, given, visible, target, token)
            close(pred[sample, 0, : len(target)], expected)


@KINDS
def test_loaded_and_saved_is_the_same_file(kind, tmp_path) -> None:
    """Names, shapes and every bit; fixed tables to the rounding of their sines."""
    parts, checkpoint = build(kind), published.checkpoint(kind)
    torch.save(checkpoint, tmp_path / "jepa.pt")
    LOAD[kind](tmp_path / "jepa.pt", **parts)
    saved = SAVE[kind](**parts, epoch=7)
    assert saved.keys() == {*PARTS, "epoch"} and saved["epoch"] == 7
    for key in PARTS:
        assert saved[key].keys() == checkpoint[key].keys()
        for table in TABLES:
            if table in saved[key]:
                tables = saved[key].pop(table), checkpoint[key].pop(table)
                torch.testing.assert_close(*tables, rtol=0, atol=1e-6)
        assert same(saved[key], checkpoint[key])


@KINDS
def test_saved_tensors_stay_as_they_were(kind) -> None:
    """Trap: a checkpoint that is kept in memory and changes with the model."""
    parts = build(kind)
    saved = SAVE[kind](**parts, epoch=0)
    kept = {key: {n: tensor.clone() for n, tensor in saved[key].items()} for key in PARTS}
    for part in ("encoder", "predictor"):
        scramble(parts[part])
    scramble(parts["teacher"].module)
    assert all(same(saved[key], kept[key]) for key in PARTS)


def test_a_learned_table_is_taken_and_given_back() -> None:
    checkpoint = published.checkpoint("vjepa")
    name = "module.backbone.pos_embed"
    checkpoint["encoder"][name] = torch.randn_like(checkpoint["encoder"][name])
    parts = build("vjepa")
    with pytest.raises(ValueError, match=r"pos_embed is not the encoder's .* position='learned'"):
        load_vjepa(checkpoint, encoder=parts["encoder"])
    encoder = build_encoder("vjepa", position="learned")
    load_vjepa(checkpoint, encoder=encoder)
    saved = vjepa_checkpoint(encoder, parts["predictor"], parts["teacher"], epoch=0)
    assert same(saved["encoder"], checkpoint["encoder"])


def test_a_table_that_rotary_models_do_not_use() -> None:
    checkpoint = published.checkpoint("vjepa2")
    checkpoint["encoder"][TABLES[0]] = torch.randn(1, 7, published.DIM)
    checkpoint["predictor"][TABLES[1]] = torch.randn(1, 7, published.PREDICTOR_DIM)
    parts = build("vjepa2")
    load_vjepa2(checkpoint, **parts)
    saved = vjepa2_checkpoint(**parts, epoch=0)
    for key, table in (("encoder", TABLES[0]), ("predictor", TABLES[1])):
        del checkpoint[key][table]
        assert same(saved[key], checkpoint[key])


def test_rotary_models_are_loaded_for_any_crop(clips) -> None:
    checkpoint = published.checkpoint("vjepa2")
    usual, other = build_encoder("vjepa2"), build_encoder("vjepa2", grid_size=(2, 5, 6))
    for encoder in (usual, other):
        load_vjepa2(checkpoint, encoder=encoder)
    assert torch.equal(usual(clips), other(clips))


@KINDS
def test_the_momentum_schedule_goes_on(kind) -> None:
    teacher = build(kind)["teacher"]
    LOAD[kind](published.checkpoint(kind), teacher=teacher)
    assert teacher.step == 0
    LOAD[kind](published.checkpoint(kind), teacher=teacher, steps_per_epoch=100)
    assert (teacher.step, teacher.momentum) == (700, 0.85)


@KINDS
def test_wrapped_parts(kind, process_group) -> None:
    """Trap: on a wrapper every name starts with `module.` or `_orig_mod.`, and nothing matches."""
    parts, checkpoint = build(kind), published.checkpoint(kind)
    wrapped = {
        name: torch.compile(DistributedDataParallel(part), backend="eager")
        for name, part in parts.items()
        if name != "teacher"
    }
    LOAD[kind](checkpoint, **wrapped, teacher=parts["teacher"])
    saved = SAVE[kind](**wrapped, teacher=parts["teacher"], epoch=0)
    assert same(saved["target_encoder"] | saved["encoder"], saved["encoder"])
    rest = {name: tensor for name, tensor in saved["encoder"].items() if name not in TABLES}
    assert same(rest, {name: checkpoint["encoder"][name] for name in rest})


def drop(key: str, name: str) -> Callable[[dict[str, Any]], object]:
    return lambda checkpoint: checkpoint[key].pop(f"module.backbone.{name}")


def put(key: str, name: str, tensor: Any) -> Callable[[dict[str, Any]], object]:
    return lambda checkpoint: checkpoint[key].update({f"module.backbone.{name}": tensor})


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "a name missing": (
        "vjepa",
        drop("target_encoder", "norm.bias"),
        r"checkpoint\['target_encoder'\]: must have the names of the teacher, but .*'norm.bias'",
    ),
    "a name more, as in V-JEPA 2.1": (
        "vjepa2",
        put("target_encoder", "img_mod_embed", torch.zeros(1, 1, 32)),
        r"adds \['img_mod_embed'\]",
    ),
    "more mask tokens": (
        "vjepa",
        put("predictor", "mask_tokens.2", torch.zeros(1, 1, 20)),
        r"build the predictor with num_mask_tokens=3$",
    ),
    "no tensor": (
        "vjepa2",
        put("target_encoder", "norm.bias", [0.0]),
        r"norm.bias: must be a torch.Tensor, got list",
    ),
    "a table with NaN": (
        "vjepa",
        put("target_encoder", "pos_embed", torch.full((1, 48, 32), torch.nan)),
        r"checkpoint\['target_encoder'\]: pos_embed holds NaN or infinity",
    ),
    "a part missing": (
        "vjepa2",
        lambda checkpoint: checkpoint.pop("target_encoder"),
        r"checkpoint: must hold 'target_encoder', .* passed as \{'target_encoder': state_dict\}",
    ),
    "no epoch": (
        "vjepa",
        lambda checkpoint: checkpoint.pop("epoch"),
        r"steps_per_epoch=10: the checkpoint has no 'epoch'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_all_or_nothing(case) -> None:
    """Trap: half of a checkpoint is loaded, the rest is skipped in silence."""
    kind, change, message = BROKEN[case]
    parts, checkpoint = build(kind), published.checkpoint(kind)
    change(checkpoint)
    before = snapshot(parts)
    with pytest.raises((TypeError, ValueError), match=message):
        LOAD[kind](checkpoint, **parts, steps_per_epoch=10)
    assert same(snapshot(parts), before)


ENCODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "depth": ("vjepa2", {"depth": 3}, r"build the encoder with depth=2$"),
    "width": (
        "vjepa2",
        {"embed_dim": 36},
        r"with embed_dim=32, embed=Tubelets\(\(2, 3, 3\), 32, in_channels=3\)$",
    ),
    "tubelet": (
        "vjepa2",
        {"embed": Tubelets((1, 3, 3), 32)},
        r"with embed=Tubelets\(\(2, 3, 3\), 32, in_channels=3\)$",
    ),
    "MLP": ("vjepa2", {"mlp_ratio": 3.0}, r"with mlp_ratio=4$"),
    "registers": ("vjepa2", {"num_registers": 1}, r"lacks \['registers'\]"),
    "crop": (
        "vjepa",
        {"grid_size": (3, 5, 5)},
        r"pos_embed \(1, 48, 32\) .* build the encoder with grid_size=\(3, 4, 4\)$",
    ),
    "as many tokens on another grid": (
        "vjepa",
        {"grid_size": (12, 2, 2)},
        r"pos_embed is not the encoder's table .* grid_size=\(3, 4, 4\), uniform_power=True$",
    ),
    "more features for time": (
        "vjepa",
        {"uniform_power": False},
        r"pos_embed is not .* with grid_size=\(3, 4, 4\), uniform_power=True$",
    ),
    "rotary positions for V-JEPA": (
        "vjepa",
        {"position": "rope-vjepa2"},
        r"encoder: position='rope-vjepa2' has no place .* position='sincos'$",
    ),
    "the standard rotary formula": (
        "vjepa2",
        {"position": "rope"},
        r"encoder: position='rope' has no place .* position='rope-vjepa2'$",
    ),
    "a grid that is not square": (
        "vjepa",
        {"grid_size": (3, 2, 8)},
        r"encoder on the grid \(3, 2, 8\): must be \(T, H, H\)",
    ),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_the_error_names_what_does_not_fit(case) -> None:
    kind, changes, message = ENCODERS[case]
    encoder = build_encoder(kind, **changes)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        LOAD[kind](published.checkpoint(kind), encoder=encoder)
    assert same(encoder.state_dict(), before)


@KINDS
def test_what_the_layout_has_no_place_for(kind) -> None:
    """Trap: a file whose weights are all there and compute something else where they are read."""
    parts = build(kind)
    encoders = {
        r"adds \['registers'\]": {"num_registers": 1},
        r"adds \['blocks.0.ls1.gamma', ": {"layer_scale": 0.1},
        r"position='rope' has no place": {"position": "rope"},
    }
    for message, changes in encoders.items():
        encoder = build_encoder(kind, **changes)
        with pytest.raises(ValueError, match=f"encoder: .*{message}"):
            SAVE[kind](**(parts | {"encoder": encoder}), epoch=0)
        with pytest.raises(ValueError, match=f"teacher: .*{message}"):
            SAVE[kind](**(parts | {"teacher": EMATeacher(encoder, 0.5)}), epoch=0)
    predictor = build_predictor(kind, position="rope")
    with pytest.raises(ValueError, match="predictor: position='rope' has no place"):
        SAVE[kind](**(parts | {"predictor": predictor}), epoch=0)
    if kind == "vjepa":
        predictor = build_predictor(kind, num_levels=2)
        with pytest.raises(ValueError, match=r"predictor: .*adds \['predictor_level_embedding'\]"):
            SAVE[kind](**(parts | {"predictor": predictor}), epoch=0)


@KINDS
@pytest.mark.no_hook
def test_parts_of_another_class(kind) -> None:
    with pytest.raises(ValueError, match="encoder, predictor, teacher: at least one"):
        LOAD[kind](published.checkpoint(kind))
    parts = build(kind)
    for name, other in (
        ("encoder", "TokenViT"), ("predictor", "MaskedPredictor"), ("teacher", "EMATeacher"),
    ):  # fmt: skip
        wrong = {name: torch.nn.Linear(2, 2)}
        with pytest.raises(TypeError, match=rf"{name}=torch.*Linear: must be the {other}"):
            LOAD[kind](published.checkpoint(kind), **wrong)
        with pytest.raises(TypeError, match=rf"{name}=torch.*Linear: must be the {other}"):
            SAVE[kind](**(parts | wrong), epoch=0)
