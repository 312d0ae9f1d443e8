"""Parts of the size of `published.checkpoint`, for the tests of `jepakit.interop`."""

import socket
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from tests.interop.published import ENCODER, ENCODER_HEADS, PREDICTOR, PREDICTOR_HEADS
from torch import Tensor, nn

from jepakit import EMATeacher, MaskedPredictor, MaskedViT, Masks, TokenSet, linear

NAME = "vit_huge_patch14_gap_224"  # one of those for which timm has I-JEPA's weights
ARGUMENTS: dict[str, Any] = {
    "img_size": ENCODER["side"] * ENCODER["patch"],
    "patch_size": ENCODER["patch"],
    "embed_dim": ENCODER["dim"],
    "depth": ENCODER["depth"],
    "num_heads": ENCODER_HEADS,
    "num_classes": 0,
}
GRID = (ENCODER["side"], ENCODER["side"])


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test downloads anything."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"a test wants to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def build_encoder() -> Callable[..., MaskedViT]:
    """A function `(**changes of timm's arguments)` to a new encoder in eval mode."""

    def build(**changes: Any) -> MaskedViT:
        return MaskedViT(timm.create_model(NAME, **(ARGUMENTS | changes))).eval()

    return build


@pytest.fixture(scope="session")
def build_predictor() -> Callable[..., MaskedPredictor]:
    """A function `(**changes)` to a new predictor."""

    def build(**changes: Any) -> MaskedPredictor:
        arguments: dict[str, Any] = {
            "grid_size": GRID,
            "encoder_dim": PREDICTOR["encoder_dim"],
            "predictor_embed_dim": PREDICTOR["dim"],
            "depth": PREDICTOR["depth"],
            "num_heads": PREDICTOR_HEADS,
        }
        return MaskedPredictor(**(arguments | changes))

    return build


@pytest.fixture
def parts(build_encoder, build_predictor) -> dict[str, Any]:
    """An encoder, a predictor and a teacher whose weights are not those of any checkpoint."""
    encoder = build_encoder()
    scramble(encoder)
    teacher = EMATeacher(encoder, linear(0.5, 1.0, steps=1000))
    scramble(teacher.module)
    predictor = build_predictor()
    scramble(predictor)
    return {"encoder": encoder, "predictor": predictor, "teacher": teacher}


@pytest.fixture
def ragged() -> Masks:
    """Three samples, contexts and two target blocks each of sizes of their own."""
    size = GRID[0] * GRID[1]
    order = torch.rand(3, 3, size).argsort(dim=-1)
    sets = TokenSet.from_mask(
        order < torch.tensor([[5, 3, 1], [9, 2, 4], [7, 6, 3]])[..., None], GRID
    )
    return Masks(context=sets[:, 0], targets=sets[:, 1:])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, ARGUMENTS["img_size"], ARGUMENTS["img_size"])


def scramble(module: nn.Module) -> None:
    """Set weights at which every part of the module affects the output."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def snapshot(parts: dict[str, Any]) -> dict[str, Tensor]:
    """Copies of everything that loading could change."""
    found = {
        f"{part}.{name}": tensor.clone()
        for part, module in parts.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    return found | {"step": torch.tensor(parts["teacher"].step)}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
