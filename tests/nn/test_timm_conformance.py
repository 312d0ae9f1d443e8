"""The script that measures every model of timm sees what it is for."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from jepakit import MaskedViT, TokenSet

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "timm_conformance.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("timm_conformance", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_srelpos_small_patch16_224"]
)
def test_whole_models_pass(script, name) -> None:
    row = script.conform(name)
    assert row.passed, row
    assert set(row.laws) == {"full", "masked", "leak", "batch", "finite"}


def test_other_classes(script) -> None:
    row = script.conform_other("cait_xxs24_224")
    assert row.passed and row.mode == "replace", row
    row = script.conform_other("test_convnext")
    assert row.passed and row.mode == "refused" and "patch_embed" in row.note, row


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        ("full", lambda tokens, context: tokens if context else tokens.roll(1, dims=1)),
        ("masked", lambda tokens, context: tokens * 1.01 if context else tokens),
        ("batch", lambda tokens, _: tokens + 0.1 * tokens.abs().amax() * tokens.std()),
        ("batch", lambda tokens, _: tokens / (len(tokens) > 1)),
        ("finite", lambda tokens, context: tokens + 1.0 if context else tokens),
        ("finite", lambda tokens, _: tokens.detach() + tokens.mean() * 0.0),
    ],
)
def test_a_broken_encoder_fails(script, monkeypatch, law, broken) -> None:
    original = MaskedViT.forward
    monkeypatch.setattr(
        MaskedViT,
        "forward",
        lambda self, images, context=None: broken(original(self, images, context), context),
    )
    row = script.conform("vit_tiny_patch16_224")
    assert not row.passed
    assert row.laws[law] > script.TOLERANCE


def test_a_leak_fails(script, monkeypatch) -> None:
    original = MaskedViT.forward

    def leaking(self, images, context: TokenSet | None = None) -> torch.Tensor:
        return original(self, images, context) + 1e-6 * images.mean()

    monkeypatch.setattr(MaskedViT, "forward", leaking)
    row = script.conform("vit_tiny_patch16_224")
    assert not row.passed and row.laws["leak"] > 0
