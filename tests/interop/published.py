"""The published I-JEPA by an independent, naive implementation: one token, one head at a time.

Works on state dicts in the published layout, with random weights, so that every tensor that lands
in the wrong place changes the result.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

ENCODER = {"side": 4, "patch": 3, "dim": 32, "depth": 2}
PREDICTOR = {"side": 4, "encoder_dim": 32, "dim": 24, "depth": 3}
ENCODER_HEADS, PREDICTOR_HEADS = 4, 2


def position(row: int, column: int, dim: int) -> list[float]:
    """The published embedding of a position: of its column first, then of its row."""
    values: list[float] = []
    for coordinate in (column, row):
        pairs = dim // 4
        angles = [coordinate / 10000 ** (i / pairs) for i in range(pairs)]
        values += [math.sin(angle) for angle in angles]
        values += [math.cos(angle) for angle in angles]
    return values


def table(side: int, dim: int) -> Tensor:
    rows = [position(row, column, dim) for row in range(side) for column in range(side)]
    return torch.tensor(rows)[None]


def _linear(state: State, name: str, inputs: int, outputs: int) -> None:
    state[f"{name}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
    state[f"{name}.bias"] = 0.3 * torch.randn(outputs)


def _norm(state: State, name: str, dim: int) -> None:
    state[f"{name}.weight"] = 1 + 0.3 * torch.randn(dim)
    state[f"{name}.bias"] = 0.3 * torch.randn(dim)


def _block(state: State, name: str, dim: int) -> None:
    _norm(state, f"{name}.norm1", dim)
    _linear(state, f"{name}.attn.qkv", dim, 3 * dim)
    _linear(state, f"{name}.attn.proj", dim, dim)
    _norm(state, f"{name}.norm2", dim)
    _linear(state, f"{name}.mlp.fc1", dim, 4 * dim)
    _linear(state, f"{name}.mlp.fc2", 4 * dim, dim)


def encoder_state(side: int, patch: int, dim: int, depth: int) -> State:
    state: State = {"pos_embed": table(side, dim)}
    state["patch_embed.proj.weight"] = torch.randn(dim, 3, patch, patch) / (patch * 3**0.5)
    state["patch_embed.proj.bias"] = 0.3 * torch.randn(dim)
    for number in range(depth):
        _block(state, f"blocks.{number}", dim)
    _norm(state, "norm", dim)
    return state


def predictor_state(side: int, encoder_dim: int, dim: int, depth: int) -> State:
    state: State = {"mask_token": torch.randn(1, 1, dim), "predictor_pos_embed": table(side, dim)}
    _linear(state, "predictor_embed", encoder_dim, dim)
    for number in range(depth):
        _block(state, f"predictor_blocks.{number}", dim)
    _norm(state, "predictor_norm", dim)
    _linear(state, "predictor_proj", dim, encoder_dim)
    return state


def checkpoint(seed: int = 0) -> dict[str, Any]:
    """A checkpoint as the published code saves it."""
    torch.manual_seed(seed)
    states = {
        "encoder": encoder_state(**ENCODER),
        "predictor": predictor_state(**PREDICTOR),
        "target_encoder": encoder_state(**ENCODER),
    }
    prefixed = {
        key: {f"module.{name}": tensor for name, tensor in state.items()}
        for key, state in states.items()
    }
    rest = {"opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 7, "loss": 0.25}
    return prefixed | rest | {"batch_size": 128, "world_size": 16, "lr": 0.001}


def plain(state: State) -> State:
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def _apply(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def _transform(
    state: State, name: str, x: Tensor, heads: int, rotate: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """One block on the tokens of one sequence, `[n, d]`; `rotate` turns queries and keys."""
    dim = x.shape[1]
    width = dim // heads
    qkv = _apply(state, f"{name}.attn.qkv", _layer_norm(state, f"{name}.norm1", x))
    outputs = []
    for head in range(heads):
        q, k, v = (qkv[:, part * dim + head * width :][:, :width] for part in range(3))
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        outputs.append(torch.softmax(q @ k.T / width**0.5, dim=-1) @ v)
    x = x + _apply(state, f"{name}.attn.proj", torch.cat(outputs, dim=1))
    hidden = _gelu(_apply(state, f"{name}.mlp.fc1", _layer_norm(state, f"{name}.norm2", x)))
    return x + _apply(state, f"{name}.mlp.fc2", hidden)


def _depth(state: State, blocks: str) -> int:
    return len([name for name in state if name.startswith(blocks) and "norm1.weight" in name])


def encode(
    state: State, image: Tensor, visible: list[int] | None = None, heads: int = ENCODER_HEADS
) -> Tensor:
    """Tokens of one image's visible patches, `[n, d]`."""
    weight, patch = state["patch_embed.proj.weight"], state["patch_embed.proj.weight"].shape[-1]
    side = image.shape[-1] // patch
    tokens = []
    for index in range(side * side) if visible is None else visible:
        top, left = index // side * patch, index % side * patch
        pixels = image[:, top : top + patch, left : left + patch]
        token = (weight * pixels).sum(dim=(1, 2, 3)) + state["patch_embed.proj.bias"]
        tokens.append(token + state["pos_embed"][0, index])
    x = torch.stack(tokens)
    for number in range(_depth(state, "blocks.")):
        x = _transform(state, f"blocks.{number}", x, heads)
    return _layer_norm(state, "norm", x)


def predict(
    state: State,
    context: Tensor,
    visible: list[int],
    target: list[int],
    heads: int = PREDICTOR_HEADS,
) -> Tensor:
    """Predictions of one target block from one image's context tokens, `[k, d]`."""
    positions = state["predictor_pos_embed"][0]
    known = _apply(state, "predictor_embed", context)
    tokens = [token + positions[index] for token, index in zip(known, visible, strict=True)]
    tokens += [state["mask_token"][0, 0] + positions[index] for index in target]
    x = torch.stack(tokens)
    for number in range(_depth(state, "predictor_blocks.")):
        x = _transform(state, f"predictor_blocks.{number}", x, heads)
    return _apply(state, "predictor_proj", _layer_norm(state, "predictor_norm", x[len(visible) :]))
