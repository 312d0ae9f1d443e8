"""Weight decay applies to what multiplies an input, and nothing else, however it is wrapped."""

import re
import warnings

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from jepakit import EMATeacher, HierarchicalPyramid, MaskedPredictor, MaskedViT
from jepakit.losses import LearnableTemperature, UncertaintyWeights
from jepakit.nn import VectorQuantizer
from jepakit.optim import param_groups

TINY = {"num_classes": 0, "img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 2}
SWIN = {"num_classes": 0, "img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}

# timm's name, arguments, and what the model has of two axes and more that must not be decayed.
BACKBONES = {
    "vit": ("vit_tiny_patch16_224", TINY, "pos_embed|cls_token"),
    "vit_registers": ("vit_small_patch14_reg4_dinov2", TINY, "pos_embed|cls_token|reg_token"),
    "siglip": ("vit_base_patch16_siglip_224", TINY, r"pos_embed|attn_pool\.latent"),
    "eva02": ("eva02_tiny_patch14_224", TINY, "pos_embed|cls_token"),
    "dinov3": ("vit_small_patch16_dinov3", TINY, "cls_token|reg_token"),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", TINY, r"rope\.freqs|cls_token"),
    "beit": (
        "beit_base_patch16_224",
        TINY,
        r"cls_token|blocks\.0\.attn\.relative_position_bias_table",
    ),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, ".*relative_position_bias_table"),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, r".*(logit_scale|cpb_mlp\.\d\.weight)"),
    "naflex": (
        "naflexvit_base_patch16_gap",
        {key: value for key, value in TINY.items() if key != "img_size"},
        r"embeds\.(pos_embed|reg_token)",
    ),
    "xcit": (
        "xcit_nano_12_p16_224",
        {**TINY, "cls_attn_layers": 1},
        r"cls_token|.*\.temperature|pos_embed\.token_projection\.weight",
    ),
}
MODES = {"swin": "replace", "swinv2": "replace"}
GRID = (4, 4)
# Since when timm's own models list all that they do not decay.
LISTED_SINCE = {
    "vit_registers": (1, 0, 28),
    "dinov3": (1, 0, 28),
    "swinv2": (1, 0, 31),
    "xcit": (1, 0, 31),
}


def skip_unless_listed(kind: str) -> None:
    version = tuple(int(part) for part in timm.__version__.split(".")[:3])
    if version < LISTED_SINCE.get(kind, (0,)):
        pytest.skip(f"timm {timm.__version__} does not list all that {kind} does not decay")


def decayed(model: nn.Module, **options: object) -> set[str]:
    """Names of the decayed; each parameter is in one group, once."""
    groups = param_groups(model, 0.1, **options)
    assert [group["weight_decay"] for group in groups] in ([0.1, 0.0], [0.1], [0.0])
    found = [id(p) for group in groups for p in group["params"]]
    wanted = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(found) == sorted(wanted)
    with_decay = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    return {name for name, p in model.named_parameters() if id(p) in with_decay}


def backbone(kind: str) -> nn.Module:
    name, arguments, _ = BACKBONES[kind]
    return timm.create_model(name, **arguments)


def expected(model: nn.Module, excluded: str) -> set[str]:
    """All of two axes and more but what is named; no bias has as many in these models."""
    matrices = {name for name, p in model.named_parameters() if p.dim() >= 2}
    out = {name for name in matrices if re.fullmatch(excluded, name)}
    for part in re.findall(r"\w{5,}", excluded):
        assert any(part in name for name in out), f"the model has no {part} to be left out"
    return matrices - out


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbones(kind: str) -> None:
    """Traps: decayed positions of three axes, class and register tokens, bias tables, latents."""
    if kind in ("swinv2", "xcit"):  # the others are recognised without timm's list
        skip_unless_listed(kind)
    model = backbone(kind)
    assert decayed(model) == expected(model, BACKBONES[kind][2])


@pytest.mark.parametrize("kind", [kind for kind in BACKBONES if kind not in ("xcit", "siglip")])
def test_agrees_with_timm_on_its_own_models(kind: str) -> None:
    """(But for the latents and temperatures that timm's models do not list.)"""
    skip_unless_listed(kind)
    model = backbone(kind)
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    theirs = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed(model) == {n for n, p in model.named_parameters() if id(p) in theirs}


@pytest.mark.parametrize("kind", [kind for kind in BACKBONES if kind != "xcit"])
def test_a_wrapped_backbone_is_decayed_alike(kind: str) -> None:
    """Trap: timm's list holds the backbone's own names, which nothing in a wrapper matches."""
    encoder = MaskedViT(backbone(kind), mask_mode=MODES.get(kind, "drop"))
    inner = {f"backbone.{name}" for name in decayed(encoder.backbone)}
    assert decayed(encoder) == inner
    wrapped = nn.ModuleDict({"a": nn.ModuleDict({"student": encoder}), "head": nn.Linear(4, 4)})
    assert decayed(wrapped) == {f"a.student.{name}" for name in inner} | {"head.weight"}


@pytest.mark.parametrize("position", ["sincos", "learned", "rope"])
def test_predictor(position: str) -> None:
    """Its mask tokens and its learned positions have two axes."""
    predictor = MaskedPredictor(
        GRID, 16, predictor_embed_dim=16, depth=2, num_heads=2, position=position
    )
    assert decayed(predictor) == expected(
        predictor, "mask_token|position_table" if position == "learned" else "mask_token"
    )


def test_pyramid_quantizer_losses_and_teacher() -> None:
    pyramid = HierarchicalPyramid(
        GRID, 8, pool="conv", fusion="fpn-add", projection="linear", norm="layer"
    )
    model = nn.ModuleDict(
        {
            "pyramid": pyramid,
            "queries": HierarchicalPyramid(GRID, 8, pool="attention"),
            "temperature": LearnableTemperature(),
            "uncertainty": UncertaintyWeights(3),
            "quantizer": VectorQuantizer(4, 8),
            "teacher": EMATeacher(nn.Linear(3, 3), momentum=0.9),
        }
    )
    own = expected(pyramid, "")
    assert {"top_down.laterals.0.weight", "pooling.weights.0", "projections.1.weight"} <= own
    assert decayed(model) == {f"pyramid.{name}" for name in own}


class Own(nn.Module):
    """A user's module, with what it can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(3, 3))
        self.token = nn.Parameter(torch.ones(1, 1, 3))
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.lstm = nn.LSTM(3, 3)
        self.conv = nn.Conv2d(3, 3, 2)
        self.norm = nn.LayerNorm((2, 3))
        self.group = nn.GroupNorm(1, 3)
        self.table = nn.Embedding(5, 3)
        self.tied = nn.Linear(3, 5)
        self.tied.weight = self.table.weight
        self.same = self.conv
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.listed = nn.Linear(3, 3)

    def no_weight_decay(self) -> set[str]:
        return {"listed.*"}


WEIGHTS = {
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "conv.weight",
}


def test_every_kind_of_parameter() -> None:
    """Shared ones come once, and an embedding stays one if a linear layer shares it; frozen ones
    do not come; timm's convention holds for a user's module, with its `*`."""
    assert decayed(Own()) == WEIGHTS
    twice = nn.ModuleDict({"a": Own(), "b": nn.ModuleDict({"c": Own()})})
    assert decayed(twice) == {f"{at}.{name}" for at in ("a", "b.c") for name in WEIGHTS}


def test_names_that_are_given() -> None:
    assert decayed(Own(), decay=["matrix"]) == WEIGHTS | {"matrix"}
    assert decayed(Own(), no_decay=["lstm.*", "conv.weight"]) == WEIGHTS - {
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "conv.weight",
    }
    both = {"decay": ["listed.weight", "matrix"], "no_decay": ["matrix"]}
    assert decayed(Own(), **both) == WEIGHTS | {"listed.weight"}


@pytest.mark.no_hook
def test_a_compiled_model_is_decayed_alike() -> None:
    """Trap: `_orig_mod.` before every name, and no name of a list matches."""
    model = backbone("vit")
    compiled = {name.removeprefix("_orig_mod.") for name in decayed(torch.compile(model))}
    assert compiled == decayed(model)


def test_optimisers_take_them() -> None:
    model = nn.Linear(3, 3)
    groups = param_groups(model, 0.5)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(model.weight, before[0] / 2)
    assert torch.equal(model.bias, before[1])


@pytest.mark.no_hook
def test_what_is_refused() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"decay: 'wieght' matches no parameter"):
        param_groups(model, 0.1, decay=["wieght"])
    with pytest.raises(ValueError, match=r"no_decay: 'a\.\*' matches no parameter"):
        param_groups(model, 0.1, no_decay=["a.*"])
    with pytest.raises(TypeError, match="no_decay='bias': must be a collection of names"):
        param_groups(model, 0.1, no_decay="bias")
    with pytest.raises(TypeError, match="no_decay=None: must be a collection of names"):
        param_groups(model, 0.1, no_decay=None)
    with pytest.raises(TypeError, match=r"must be one torch\.nn\.Module, .*, got list"):
        param_groups([model], 0.1)
    with pytest.raises(ValueError, match=r"weight_decay=-1: must be at least 0"):
        param_groups(model, -1)
    with pytest.raises(ValueError, match="has no parameter that needs a gradient"):
        param_groups(model.requires_grad_(False), 0.1)


def test_names_from_a_generator_count():
    """Trap: a check that uses the names up, after which none matches."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = param_groups(model, 0.1, no_decay=(name for name in ["0.weight"]))
    assert [id(model[1].weight)] == [id(parameter) for parameter in groups[0]["params"]]


def test_names_of_frozen_parameters_raise():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0\.weight' matches no parameter that is trained"):
        param_groups(model, 0.1, decay=["0.weight"])


@pytest.mark.parametrize("old", [False, True])
def test_the_matrix_of_weight_norm_is_decayed_and_its_gain_is_not(old):
    """The last layer of DINO's head. Traps: a gain of shape [n, 1]; a matrix by another name."""
    if old:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = nn.utils.weight_norm(nn.Linear(3, 4))
        gain, matrix = layer.weight_g, layer.weight_v
    else:
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
        gain, matrix = (
            layer.parametrizations.weight.original0,
            layer.parametrizations.weight.original1,
        )
    decayed, others = (group["params"] for group in param_groups(nn.ModuleList([layer]), 0.1))
    assert [id(matrix)] == [id(parameter) for parameter in decayed]
    assert id(gain) in [id(parameter) for parameter in others]
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))
    assert len(param_groups(nn.ModuleList([spectral]), 0.1)[0]["params"]) == 1
