"""Hugging Face's I-JEPA computes the same here, under both generations of its names."""

import warnings
from typing import Any

import pytest
import torch
from tests.interop import published
from tests.interop.conftest import ARGUMENTS, same, scramble
from torch import Tensor, nn

from jepakit.interop import load_hf_ijepa, timm_state_dict

OLD = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
NEW = OLD | {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def hf_state(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """A published encoder's state dict as Hugging Face writes it."""
    blocks = "encoder.layer" if names is OLD else "layers"
    found = {"embeddings.position_embeddings": state["pos_embed"]}
    for kind in ("weight", "bias"):
        patch = state[f"patch_embed.proj.{kind}"]
        found[f"embeddings.patch_embeddings.projection.{kind}"] = patch
        found[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for number in range(published.ENCODER["depth"]):
            block = f"{blocks}.{number}"
            for ours in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"):
                found[f"{block}.{names[ours]}.{kind}"] = state[f"blocks.{number}.{ours}.{kind}"]
            for letter, part in zip(
                "qkv", state[f"blocks.{number}.attn.qkv.{kind}"].chunk(3), strict=True
            ):
                found[f"{block}.{names[letter]}.{kind}"] = part
    return found


@pytest.fixture
def state() -> dict[str, Tensor]:
    return published.plain(published.checkpoint()["encoder"])


@pytest.mark.parametrize("names", [OLD, NEW], ids=["transformers 4", "transformers 5"])
def test_both_generations_of_names(build_encoder, state, names) -> None:
    encoder = build_encoder()
    load_hf_ijepa(hf_state(state, names), encoder)
    assert same(timm_state_dict(encoder), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("layernorm.bias"),
            r"model: must have the names of the encoder's backbone",
        ),
        (lambda s: s.pop("layers.1.attention.k_proj.weight"), r"lacks \['blocks.1.attn.qkv.weight"),
        (
            lambda s: s.update({"pooler.dense.bias": torch.zeros(1)}),
            r"adds \['pooler.dense.bias'\]",
        ),
        (
            lambda s: s.update({"ijepa.x": torch.zeros(1)}),
            r"pass model.ijepa of one with a head",
        ),
        (
            lambda s: s.update({"embeddings.position_embeddings": torch.zeros(1, 25, 32)}),
            r"pos_embed \(1, 25, 32\) against .*; build the encoder's backbone with img_size=15, "
            r"or pass adapt=True$",
        ),
        (
            lambda s: s.update({"layernorm.bias": torch.zeros(32, dtype=torch.int32)}),
            r"model: norm.bias: must be floating point",
        ),
    ],
)
def test_all_or_nothing(build_encoder, state, change, message) -> None:
    """Trap: names that do not match are skipped in silence."""
    encoder = build_encoder()
    before = timm_state_dict(encoder)
    broken = hf_state(state, NEW)
    change(broken)
    with pytest.raises((TypeError, ValueError), match=message):
        load_hf_ijepa(broken, encoder)
    assert same(timm_state_dict(encoder), before)


def test_a_state_dict_does_not_know_its_grid(build_encoder, state) -> None:
    with pytest.raises(ValueError, match=r"grid \(2, 8\), and a state dict does not show"):
        load_hf_ijepa(hf_state(state, OLD), build_encoder(img_size=(6, 24)))


@pytest.mark.no_hook
def test_something_else(build_encoder) -> None:
    with pytest.raises(TypeError, match="model: must be an IJepaModel or its state dict, got str"):
        load_hf_ijepa("facebook/ijepa_vith14_1k", build_encoder())
    with pytest.raises(TypeError, match=r"encoder=.*Linear: must be the MaskedViT"):
        load_hf_ijepa({}, nn.Linear(2, 2))


@pytest.fixture(scope="module")
def hf_model() -> Any:
    """A function `(**changes of the configuration)` to a random model."""
    with warnings.catch_warnings():
        # What it warns of on import is between it and its own dependencies.
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        if not hasattr(transformers, "IJepaModel"):  # which imports the model itself
            pytest.skip("this transformers has no I-JEPA")

    def build(**changes: Any) -> nn.Module:
        config = {
            "hidden_size": ARGUMENTS["embed_dim"],
            "num_hidden_layers": ARGUMENTS["depth"],
            "num_attention_heads": ARGUMENTS["num_heads"],
            "intermediate_size": 4 * ARGUMENTS["embed_dim"],
            "image_size": ARGUMENTS["img_size"],
            "patch_size": ARGUMENTS["patch_size"],
            "layer_norm_eps": 1e-6,
        }
        torch.manual_seed(0)
        model = transformers.IJepaModel(transformers.IJepaConfig(**(config | changes))).eval()
        scramble(model)
        return model

    return build


@torch.no_grad()
@pytest.mark.parametrize("given", ["model", "state dict"])
def test_parity_with_transformers(build_encoder, hf_model, images, given) -> None:
    model, encoder = hf_model(), build_encoder()
    load_hf_ijepa(model if given == "model" else model.state_dict(), encoder)
    expected = model(pixel_values=images).last_hidden_state
    scale = expected.abs().max().item()
    torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def test_parity_on_a_grid_that_is_not_square(build_encoder, hf_model) -> None:
    model, encoder = hf_model(image_size=(6, 24)), build_encoder(img_size=(6, 24))
    load_hf_ijepa(model, encoder)
    images = torch.randn(2, 3, 6, 24)
    expected = model(pixel_values=images).last_hidden_state
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 2}, r"encoder: has 4 heads, the model 2; .* with num_heads=2"),
        ({"layer_norm_eps": 1e-12}, r"has eps=1e-06, .* trained with 1e-12"),
        ({"hidden_act": "relu"}, r"model.config.hidden_act='relu': must be 'gelu'"),
        ({"image_size": (6, 24)}, r"grid \(4, 4\), the model on \(2, 8\); .* img_size=\(6, 24\)"),
        ({"qkv_bias": False}, r"lacks \['blocks.0.attn.qkv.bias', .* with qkv_bias=False"),
    ],
)
def test_what_a_model_says_of_itself_is_compared(build_encoder, hf_model, changes, message) -> None:
    """Trap: all weights fit, and another number of heads computes something else."""
    encoder = build_encoder()
    before = timm_state_dict(encoder)
    with pytest.raises(ValueError, match=message):
        load_hf_ijepa(hf_model(**changes), encoder)
    assert same(timm_state_dict(encoder), before)


def test_a_model_without_configuration(build_encoder) -> None:
    encoder = build_encoder()
    with pytest.raises((TypeError, ValueError), match="model: must have the names"):
        load_hf_ijepa(nn.Linear(2, 2), encoder)
