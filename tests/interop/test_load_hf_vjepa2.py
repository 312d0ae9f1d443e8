"""Hugging Face's V-JEPA 2 computes the same here, and takes the weights back."""

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.interop.conftest import same, scramble
from torch import Tensor, nn

from jepakit import MaskedPredictor, TokenSet
from jepakit.interop import hf_vjepa2_state_dict, load_hf_vjepa2
from jepakit.nn import TokenViT, Tubelets

GRID, TUBELET = (4, 4, 4), (2, 4, 4)
HEADS, HEAD_DIM = 2, 16  # 5 of the 16 features would not turn in pairs: 3 x 4 do
DIM = HEADS * HEAD_DIM


def build_encoder(**changes: Any) -> TokenViT:
    arguments: dict[str, Any] = {
        "num_heads": HEADS,
        "position": "rope-vjepa2",
        "mlp_ratio": 48 / 11,
    } | changes
    return TokenViT(GRID, DIM, 2, embed=Tubelets(TUBELET, DIM), **arguments).eval()


def build_predictor(**changes: Any) -> MaskedPredictor:
    arguments: dict[str, Any] = {
        "predictor_embed_dim": 36,
        "depth": 2,
        "num_heads": 3,
        "position": "rope-vjepa2",
        "num_mask_tokens": 3,
    }
    return MaskedPredictor(GRID, DIM, **(arguments | changes)).eval()


@pytest.fixture(scope="module")
def hf_model() -> Any:
    """A function `(**changes of the configuration)` to a random model."""
    with warnings.catch_warnings():
        # What it warns of on import is between it and its own dependencies.
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        if not hasattr(transformers, "VJEPA2Model"):  # which imports the model itself
            pytest.skip("this transformers has no V-JEPA 2")

    def build(**changes: Any) -> nn.Module:
        config = {
            "patch_size": TUBELET[1],
            "crop_size": GRID[1] * TUBELET[1],
            "frames_per_clip": GRID[0] * TUBELET[0],
            "tubelet_size": TUBELET[0],
            "hidden_size": DIM,
            "num_attention_heads": HEADS,
            "num_hidden_layers": 2,
            "mlp_ratio": 48 / 11,
            "pred_hidden_size": 36,
            "pred_num_attention_heads": 3,
            "pred_num_hidden_layers": 2,
            "pred_num_mask_tokens": 3,
        }
        torch.manual_seed(0)
        model = transformers.VJEPA2Model(transformers.VJEPA2Config(**(config | changes))).eval()
        scramble(model)
        return model

    return build


def close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """To 1e-5 of the largest value."""
    error, scale = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert error <= 1e-5 * scale, f"{name}: differs by {error:.1e} of {scale:.1e}"


def check_gradients(part: str, ours: nn.Module, theirs: nn.Module) -> None:
    """Compare the gradients of all parameters, ours put under their names as weights are."""
    holder = copy.deepcopy(ours)
    for parameter, own in zip(holder.parameters(), ours.parameters(), strict=True):
        parameter.data = own.grad.clone()
    gradients = hf_vjepa2_state_dict(**{part: holder})
    expected = {f"{part}.{name}": p.grad for name, p in theirs.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        close(gradient, expected[name], name)


@pytest.mark.parametrize("given", ["model", "state dict"])
def test_encoder_parity(hf_model, given) -> None:
    """Values and gradients."""
    model, encoder = hf_model(), build_encoder()
    load_hf_vjepa2(model if given == "model" else model.state_dict(), encoder=encoder)
    clips = torch.randn(2, 3, 8, 16, 16)
    out, expected = encoder(clips), model.encoder(clips.transpose(1, 2)).last_hidden_state
    close(out, expected)
    weights = torch.randn_like(out)
    for result in (out, expected):
        (result * weights).sum().backward()
    check_gradients("encoder", encoder, model.encoder)


def test_predictor_parity(hf_model) -> None:
    """Values and gradients; the model's predictor takes its mask token 1."""
    model, predictor = hf_model(), build_predictor()
    load_hf_vjepa2(model, predictor=predictor)
    order = torch.stack([torch.randperm(64) for _ in range(2)])
    seen, asked = order[:, :20].sort().values, order[:, 20:50].sort().values
    features = torch.randn(2, 64, DIM)
    context = TokenSet.from_indices(seen, GRID)
    targets = TokenSet.from_indices(asked[:, None], GRID)
    visible = torch.gather(features, 1, seen[..., None].expand(-1, -1, DIM))
    out = predictor(visible, context, targets, mask_token=1)[:, 0]
    expected = model.predictor(features, [seen], [asked]).last_hidden_state
    close(out, expected)
    weights = torch.randn_like(out)
    for result in (out, expected):
        (result * weights).sum().backward()
    check_gradients("predictor", predictor, model.predictor)


def test_there_and_back(hf_model) -> None:
    """Every bit, both ways; transformers takes the state dict with `strict`."""
    model, parts = hf_model(), {"encoder": build_encoder(), "predictor": build_predictor()}
    load_hf_vjepa2(model, **parts)
    state = hf_vjepa2_state_dict(**parts)
    assert same(state, dict(model.state_dict()))
    other = hf_model(num_attention_heads=HEADS)
    scramble(other)
    other.load_state_dict(state)
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert not any(tensor.requires_grad for tensor in state.values())


def test_saved_tensors_stay_as_they_were() -> None:
    parts = {"encoder": build_encoder(), "predictor": build_predictor()}
    state = hf_vjepa2_state_dict(**parts)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for part in parts.values():
        scramble(part)
    assert same(state, kept)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("encoder", {"num_attention_heads": 1}, r"encoder: has 2 heads, .* with num_heads=1"),
        (
            "predictor",
            {"pred_num_attention_heads": 2},
            r"predictor: has 3 heads, the model 2; .* with num_heads=2",
        ),
        ("encoder", {"layer_norm_eps": 1e-5}, r"layer_norm_eps=1e-05: must be 1e-06"),
        ("encoder", {"hidden_act": "relu"}, r"model.config.hidden_act='relu': must be 'gelu'"),
        ("encoder", {"qkv_bias": False}, r"lacks \['blocks.0.attn.qkv.bias'"),
        ("encoder", {"num_hidden_layers": 3}, r"build the encoder with depth=3$"),
        ("encoder", {"tubelet_size": 1}, r"with embed=Tubelets\(\(1, 4, 4\), 32, in_channels=3\)$"),
        ("predictor", {"pred_num_mask_tokens": 2}, r"predictor with num_mask_tokens=2$"),
        ("predictor", {"pred_hidden_size": 72}, r"with predictor_embed_dim=72$"),
    ],
)
def test_what_does_not_fit(hf_model, part, changes, message) -> None:
    """Trap: all weights fit, and another number of heads computes something else."""
    parts = {"encoder": build_encoder(), "predictor": build_predictor()}
    before = hf_vjepa2_state_dict(**parts)
    with pytest.raises(ValueError, match=message) as error:
        load_hf_vjepa2(hf_model(**changes), **parts)
    assert part in str(error.value) or "config" in str(error.value)
    assert same(hf_vjepa2_state_dict(**parts), before)


def test_state_dicts_that_do_not_fit() -> None:
    encoder = build_encoder()
    state = hf_vjepa2_state_dict(encoder=encoder)
    for change, message in (
        ({"encoder.layer.0.extra.weight": torch.zeros(1)}, r"adds \['blocks.0.extra.weight'\]"),
        ({"vjepa2.encoder.layernorm.bias": torch.zeros(1)}, r"pass model.vjepa2 of one with head"),
    ):
        with pytest.raises(ValueError, match=message):
            load_hf_vjepa2(state | change, encoder=encoder)
    del state["encoder.layer.0.attention.key.weight"]
    with pytest.raises(ValueError, match=r"lacks \['blocks.0.attn.qkv.weight'\]"):
        load_hf_vjepa2(state, encoder=encoder)


@pytest.mark.no_hook
def test_something_else() -> None:
    with pytest.raises(TypeError, match="model: must be a VJEPA2Model or its state dict, got str"):
        load_hf_vjepa2("facebook/vjepa2-vitl-fpc64-256", encoder=build_encoder())
    with pytest.raises(TypeError, match=r"encoder=.*Linear: must be the TokenViT"):
        load_hf_vjepa2({}, encoder=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="encoder, predictor: at least one must be given"):
        hf_vjepa2_state_dict()
