"""Loading is all or nothing: what does not fit raises, names the rule, and changes no part."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.interop import published
from tests.interop.conftest import ENCODER_HEADS, same, snapshot
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer

from jepakit import MaskedViT
from jepakit.interop import ijepa_checkpoint, load_ijepa
from jepakit.interop._encoder_layout import backbone_arguments

PREFIX = "module."


def drop(key: str, name: str) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: dict[str, Any]) -> None:
        del checkpoint[key][PREFIX + name]

    return change


def put(key: str, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint[key][PREFIX + name] = value

    return change


def replace(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint[key] = value

    return change


ENCODER, PREDICTOR = published.ENCODER, published.PREDICTOR
BROKEN: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a name missing": (
        drop("target_encoder", "norm.bias"),
        r"checkpoint\['target_encoder'\]: must have the names of the teacher's backbone, but lacks "
        r"\['norm.bias'\] and adds none \(1 missing, 0 extra\)$",
    ),
    "a name too many": (
        put("predictor", "extra", torch.zeros(2)),
        r"checkpoint\['predictor'\]: must have the names of the predictor, but lacks none and adds "
        r"\['extra'\]",
    ),
    "one name without the prefix": (
        lambda checkpoint: checkpoint["encoder"].update(extra=torch.zeros(2)),
        r"checkpoint\['encoder'\]: must have the names",
    ),
    "one shape": (
        put("target_encoder", "norm.bias", torch.zeros(1)),
        r"checkpoint\['target_encoder'\]: must have the shapes of the teacher's backbone, but "
        r"differs in 1: norm.bias \(1,\) against \(32,\)$",
    ),
    "another grid": (
        replace("target_encoder", published.encoder_state(**(ENCODER | {"side": 5}))),
        r"pos_embed \(1, 25, 32\) against \(1, 16, 32\); build the teacher's backbone with "
        r"img_size=15, or pass adapt=True$",
    ),
    "another patch size": (
        replace("target_encoder", published.encoder_state(**(ENCODER | {"patch": 2}))),
        r"build the teacher's backbone with patch_size=2, img_size=8, or pass adapt=True$",
    ),
    "another depth": (
        replace("target_encoder", published.encoder_state(**(ENCODER | {"depth": 3}))),
        r"adds \['blocks.2.attn.proj.bias'.*; build the teacher's backbone with depth=3$",
    ),
    "another width": (
        replace("target_encoder", published.encoder_state(**(ENCODER | {"dim": 16}))),
        r"differs in 29: .*; build the teacher's backbone with embed_dim=16$",
    ),
    "a predictor on another grid": (
        replace("predictor", published.predictor_state(**(PREDICTOR | {"side": 3}))),
        r"predictor_pos_embed .* build the predictor with grid_size=\(3, 3\), or pass adapt=True$",
    ),
    "another predictor": (
        replace("predictor", published.predictor_state(3, 16, 8, 3)),
        r"build the predictor with encoder_dim=16, predictor_embed_dim=8, grid_size=\(3, 3\)$",
    ),
    "a deeper predictor": (
        replace("predictor", published.predictor_state(**(PREDICTOR | {"depth": 4}))),
        r"build the predictor with depth=4$",
    ),
    "a table with the row first": (
        put("predictor", "predictor_pos_embed", published.table(4, 24).roll(12, dims=-1)),
        r"predictor_pos_embed differs from the published sine-cosine table by up to .* build the "
        r"predictor with position='learned'",
    ),
    "a table with NaN": (
        put("predictor", "predictor_pos_embed", torch.full((1, 16, 24), torch.nan)),
        r"predictor_pos_embed holds NaN or infinity, must be finite",
    ),
    "no tensor": (
        put("target_encoder", "norm.bias", [0.0] * 32),
        r"checkpoint\['target_encoder'\]: norm.bias: must be a torch.Tensor, got list",
    ),
    "integers": (
        put("target_encoder", "norm.bias", torch.zeros(32, dtype=torch.int64)),
        r"norm.bias: must be floating point, got torch.int64",
    ),
    "nothing in it": (
        put("target_encoder", "norm.bias", torch.zeros(32, device="meta")),
        r"norm.bias is on the meta device",
    ),
    "a sparse tensor": (
        put("target_encoder", "norm.bias", torch.zeros(32).to_sparse()),
        r"norm.bias must be a dense tensor, got torch.sparse_coo",
    ),
    "no mapping": (
        replace("target_encoder", torch.zeros(2)),
        r"checkpoint\['target_encoder'\]: must be a mapping from names to tensors",
    ),
    "a part missing": (
        lambda checkpoint: checkpoint.pop("target_encoder"),
        r"checkpoint: must hold 'target_encoder', but has batch_size, encoder, epoch, loss, lr ",
    ),
    "no epoch": (
        lambda checkpoint: checkpoint.pop("epoch"),
        r"steps_per_epoch=10: the checkpoint has no 'epoch'",
    ),
    "an epoch that is no number": (
        replace("epoch", "7"),
        r"checkpoint\['epoch'\]='7': must be an int",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_all_or_nothing(parts, case) -> None:
    """Trap: half of a checkpoint is loaded, the rest is skipped in silence."""
    change, message = BROKEN[case]
    checkpoint = published.checkpoint()
    change(checkpoint)
    before = snapshot(parts)
    with pytest.raises((TypeError, ValueError), match=message):
        load_ijepa(checkpoint, **parts, steps_per_epoch=10)
    assert same(snapshot(parts), before)


def test_the_error_names_the_arguments_of_the_backbone(build_encoder) -> None:
    checkpoint = published.checkpoint()
    wrong = {
        r"class_token=False, global_pool='avg', fc_norm=False, num_classes=0$": {
            "class_token": True,
            "num_classes": 5,
            "global_pool": "token",
        },
        r"lacks \['fc_norm.bias'.* adds \['norm.bias'.*with fc_norm=False$": {"fc_norm": True},
        r"lacks \['head.bias', 'head.weight'\] and adds none .* with num_classes=0$": {
            "num_classes": 5
        },
        r"build the encoder's backbone with qkv_bias=True$": {"qkv_bias": False},
        r"build the encoder's backbone with mlp_ratio=4$": {"mlp_ratio": 2},
        r"lacks \['blocks.0.ls1.gamma'": {"init_values": 0.1},
    }
    for message, changes in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_ijepa(checkpoint, encoder=build_encoder(**changes))


def test_the_advice_is_right(build_encoder) -> None:
    """An odd MLP, as in the published giant, is written so that timm computes the same width."""
    checkpoint = published.checkpoint()
    for number in range(ENCODER["depth"]):
        for name, shape in (
            ("fc1.weight", (100, 32)), ("fc1.bias", (100,)), ("fc2.weight", (32, 100)),
        ):  # fmt: skip
            checkpoint["encoder"][f"module.blocks.{number}.mlp.{name}"] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"with mlp_ratio=100 / 32$"):
        load_ijepa(checkpoint, encoder=build_encoder())
    load_ijepa(checkpoint, encoder=build_encoder(mlp_ratio=100 / 32))


def test_a_grid_that_is_not_square(build_encoder, build_predictor) -> None:
    """Trap: as many positions on a grid of another shape, and every one in the wrong place."""
    message = r"on the grid \(2, 8\): must be on a square grid"
    with pytest.raises(ValueError, match=f"encoder {message}"):
        load_ijepa(published.checkpoint(), encoder=build_encoder(img_size=(6, 24)))
    with pytest.raises(ValueError, match=f"predictor {message}"):
        load_ijepa(published.checkpoint(), predictor=build_predictor(grid_size=(2, 8)))


def test_arithmetic_that_weights_do_not_show(build_encoder) -> None:
    encoder = build_encoder(act_layer="gelu_tanh")
    with pytest.raises(ValueError, match=r"encoder: blocks.0.mlp.act is .*act_layer=torch.nn.GELU"):
        load_ijepa(published.checkpoint(), encoder=encoder)
    encoder = build_encoder()
    encoder.backbone.norm.eps = 1e-5
    with pytest.raises(ValueError, match=r"encoder: norm has eps=1e-05, .* with 1e-06"):
        load_ijepa(published.checkpoint(), encoder=encoder)


PLAIN: dict[str, Any] = {
    "img_size": ENCODER["side"] * ENCODER["patch"],
    "patch_size": ENCODER["patch"],
    "embed_dim": ENCODER["dim"],
    "depth": ENCODER["depth"],
    "num_heads": ENCODER_HEADS,
    "num_classes": 0,
    "class_token": False,
}
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "post-norm": (
        lambda: VisionTransformer(**PLAIN, global_pool="avg", fc_norm=False, block_fn=ResPostBlock),
        "its ResPostBlock does not compute what the published pre-norm block does",
    ),
    "rotary": (
        lambda: Eva(
            **PLAIN, attn_type="rope", use_rot_pos_emb=True, qkv_bias=True, use_fc_norm=False
        ),
        "its Eva has rotary positions",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_backbone_with_the_same_names(parts, kind) -> None:
    """Trap: weights that fit by name and shape, in a model that computes something else."""
    build, text = OTHERS[kind]
    encoder = MaskedViT(build())
    given = parts | {"encoder": encoder}
    before = snapshot(given)
    with pytest.raises(ValueError, match=f"encoder: {text}"):
        load_ijepa(published.checkpoint(), **given)
    assert same(snapshot(given), before)
    with pytest.raises(ValueError, match=f"encoder: {text}"):
        ijepa_checkpoint(**given, epoch=1)


def test_a_rotary_predictor(build_predictor) -> None:
    with pytest.raises(ValueError, match=r"position='rope' has no place .* position='sincos'"):
        load_ijepa(published.checkpoint(), predictor=build_predictor(position="rope"))


def test_no_part_is_given() -> None:
    with pytest.raises(ValueError, match="encoder, predictor, teacher: at least one"):
        load_ijepa(published.checkpoint())


def test_steps_without_a_teacher(parts) -> None:
    with pytest.raises(ValueError, match="steps_per_epoch=10: must come with a teacher"):
        load_ijepa(published.checkpoint(), encoder=parts["encoder"], steps_per_epoch=10)
    with pytest.raises(ValueError, match="steps_per_epoch=0: must be at least 1"):
        load_ijepa(published.checkpoint(), teacher=parts["teacher"], steps_per_epoch=0)


def test_parts_of_another_class(parts) -> None:
    for name, kind in (
        ("encoder", "MaskedViT"), ("predictor", "MaskedPredictor"), ("teacher", "EMATeacher"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=rf"{name}=torch.*Linear: must be the {kind}"):
            load_ijepa(published.checkpoint(), **{name: torch.nn.Linear(2, 2)})


def test_weights_on_the_meta_device_are_not_written_to(parts) -> None:
    """Trap: a copy to the meta device does nothing and says nothing."""
    with pytest.raises(ValueError, match=r"predictor: .* is on the meta device"):
        load_ijepa(published.checkpoint(), predictor=parts["predictor"].to("meta"))


@pytest.mark.parametrize("part", ["encoder", "predictor", "target_encoder"])
@pytest.mark.parametrize("adapt", [False, True])
def test_weights_that_are_not_finite(parts, part, adapt, tmp_path) -> None:
    """Trap: the checkpoint of a run that diverged, loaded without a word."""
    checkpoint = published.checkpoint()
    name = next(name for name in checkpoint[part] if name.endswith("norm.bias"))
    checkpoint[part][name][-1] = torch.inf
    path = tmp_path / "file.pth"
    torch.save(checkpoint, path)
    before = snapshot(parts)
    with pytest.raises(ValueError, match=r"norm\.bias holds NaN or infinity, .*earlier") as caught:
        load_ijepa(path, **parts, adapt=adapt)
    assert "file.pth" in caught.value.__notes__[0]
    assert same(snapshot(parts), before)


def broken_files(whole: bytes, tmp_path) -> dict[str, bytes]:
    torch.save(published.checkpoint(), tmp_path / "old", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old").read_bytes()
    cases = {"text": b"<html>404: Not Found</html>", "zeros": bytes(5000), "pickle": b"\x80\x04N."}
    cases["archive of another kind"] = b"PK\x05\x06" + bytes(18)
    for name, file in (("new", whole), ("old", old)):
        for percent in (0, 1, 10, 50, 90, 99):
            cases[f"{name}, truncated to {percent} %"] = file[: len(file) * percent // 100]
    # In the records of the new format; the old one has no checksums.
    for percent in range(2, 98, 8):
        flipped = bytearray(whole)
        flipped[len(whole) * percent // 100] ^= 16
        cases[f"bit flipped at {percent} %"] = bytes(flipped)
    return cases


def test_broken_files(parts, tmp_path) -> None:
    """Traps: `OSError: Invalid argument`, `KeyError: 105`, `EOFError` without a text; a flipped bit
    in a weight, which is loaded."""
    path = tmp_path / "file.pth"
    torch.save(published.checkpoint(), path)
    whole = path.read_bytes()
    copied = copy.deepcopy(parts)
    load_ijepa(path, **copied)
    before, loaded = snapshot(parts), snapshot(copied)
    for case, content in broken_files(whole, tmp_path).items():
        path.write_bytes(content)
        try:
            load_ijepa(path, **parts)
        except ValueError as error:
            message = str(error)
        else:  # a bit of the padding between records, which holds nothing
            assert case.startswith("bit flipped") and same(snapshot(parts), loaded), case
            before = loaded
            continue
        assert "file.pth': " in message and message.endswith("copy or download it again"), case
        assert same(snapshot(parts), before), case


class Surprise:
    pass


def test_files_that_are_none(parts, tmp_path) -> None:
    path = tmp_path / "file.pth"
    with pytest.raises(FileNotFoundError, match=r"file\.pth"):
        load_ijepa(path, encoder=parts["encoder"])
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"file.pth': must be a whole file of torch.save"):
        load_ijepa(path, encoder=parts["encoder"])
    path.write_bytes(b"not a checkpoint, but bytes")
    with pytest.raises(ValueError, match=r"file.pth': must be a whole file of torch.save"):
        load_ijepa(path, encoder=parts["encoder"])
    torch.save([1, 2], path)
    with pytest.raises(TypeError, match=r"file.pth': must hold a dict of names, got list"):
        load_ijepa(path, encoder=parts["encoder"])
    torch.save(parts["encoder"].backbone.state_dict(), path)
    with pytest.raises(
        ValueError, match=r"must hold 'encoder', but has .* passed as \{'encoder': state_dict\}"
    ):
        load_ijepa(path, encoder=parts["encoder"])


def test_a_file_that_could_run_code(parts, tmp_path) -> None:
    """Trap: `torch.load` of a stranger's file without `weights_only`."""
    path = tmp_path / "file.pth"
    torch.save(published.checkpoint() | {"surprise": Surprise()}, path)
    with pytest.raises(ValueError, match="could run code"):
        load_ijepa(path, encoder=parts["encoder"])


@pytest.mark.no_hook
def test_neither_mapping_nor_path(parts) -> None:
    with pytest.raises(TypeError, match="checkpoint: must be a mapping or a path, got int"):
        load_ijepa(3, encoder=parts["encoder"])
    with pytest.raises(TypeError, match="encoder=str: must be the MaskedViT"):
        load_ijepa(published.checkpoint(), encoder="encoder")


@pytest.mark.parametrize("part", ["encoder", "predictor", "teacher"])
def test_sharded_parts(parts, process_group, part) -> None:
    """Trap: what is written to the gathered parameters of FSDP2 is lost."""
    from torch.distributed.fsdp import fully_shard

    module = parts["teacher"].module if part == "teacher" else parts[part]
    fully_shard(module, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    with pytest.raises(ValueError, match=rf"{part}: must not be sharded yet; load weights before"):
        load_ijepa(published.checkpoint(), **{part: parts[part]})


def test_advice_has_both_sides_of_a_patch():
    weights = {
        "patch_embed.proj.weight": torch.zeros(4, 3, 8, 16),
        "pos_embed": torch.zeros(1, 4, 4),
    }
    arguments = backbone_arguments(weights)
    assert arguments["patch_size"] == "(8, 16)" and arguments["img_size"] == "(16, 32)"
