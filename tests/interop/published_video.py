"""The published V-JEPA and V-JEPA 2 by an independent, naive implementation: a token at a time.

Works on state dicts in the published layout, with random weights, as `published` does for images.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from tests.interop.published import (
    State,
    _apply,
    _block,
    _depth,
    _layer_norm,
    _linear,
    _norm,
    _transform,
)
from torch import Tensor

Kind = Literal["vjepa", "vjepa2"]
GRID = (3, 4, 4)
TUBELET = (2, 3, 3)
DIM, DEPTH, HEADS = 32, 2, 2  # a head of V-JEPA 2 has 3 x 4 features that turn and 4 that do not
PREDICTOR_DIM, PREDICTOR_DEPTH, PREDICTOR_HEADS = 20, 3, 2
MASK_TOKENS = {"vjepa": 2, "vjepa2": 4}


def place(index: int) -> tuple[int, int, int]:
    """Time, row and column of a token."""
    _, height, width = GRID
    return index // (height * width), index // width % height, index % width


def position(index: int, dim: int) -> list[float]:
    """The published embedding with `uniform_power`: of the time, the row and the column."""
    width = 2 * math.ceil(dim / 6)
    values: list[float] = []
    for coordinate in place(index):
        angles = [coordinate / 10000 ** (i / (width // 2)) for i in range(width // 2)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return values[:dim]


def table(dim: int) -> Tensor:
    return torch.tensor([[position(index, dim) for index in range(math.prod(GRID))]])


def turn(head: Tensor, index: int) -> Tensor:
    """V-JEPA 2's rotation of one token's query or key in one head, feature by feature."""
    pairs = len(head) // 3 // 2
    turned = head.clone()
    for axis, coordinate in enumerate(place(index)):
        first = 2 * pairs * axis
        for i in range(2 * pairs):
            angle = coordinate / 10000 ** (i % pairs / pairs)
            even = i % 2 == 0
            partner = -head[first + i + 1] if even else head[first + i - 1]
            turned[first + i] = head[first + i] * math.cos(angle) + partner * math.sin(angle)
    return turned


def rotation(kind: Kind, indices: list[int]) -> Callable[[Tensor], Tensor] | None:
    if kind == "vjepa":
        return None
    return lambda x: torch.stack([turn(head, i) for head, i in zip(x, indices, strict=True)])


def encoder_state(kind: Kind) -> State:
    state: State = {"pos_embed": table(DIM)} if kind == "vjepa" else {}
    kernel = torch.randn(DIM, 3, *TUBELET) / (3 * math.prod(TUBELET)) ** 0.5
    state |= {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": 0.3 * torch.randn(DIM)}
    for number in range(DEPTH):
        _block(state, f"blocks.{number}", DIM)
    _norm(state, "norm", DIM)
    return state


def predictor_state(kind: Kind) -> State:
    dim = PREDICTOR_DIM
    state: State = {"predictor_pos_embed": table(dim)} if kind == "vjepa" else {}
    state |= {f"mask_tokens.{i}": torch.randn(1, 1, dim) for i in range(MASK_TOKENS[kind])}
    _linear(state, "predictor_embed", DIM, dim)
    for number in range(PREDICTOR_DEPTH):
        _block(state, f"predictor_blocks.{number}", dim)
    _norm(state, "predictor_norm", dim)
    _linear(state, "predictor_proj", dim, DIM)
    return state


def checkpoint(kind: Kind, seed: int = 0) -> dict[str, Any]:
    """A checkpoint as the published code saves it."""
    torch.manual_seed(seed)
    states = {
        "encoder": encoder_state(kind),
        "predictor": predictor_state(kind),
        "target_encoder": encoder_state(kind),
    }
    prefixed = {
        key: {f"module.backbone.{name}": tensor for name, tensor in state.items()}
        for key, state in states.items()
    }
    return prefixed | {"opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 7}


def plain(state: State) -> State:
    return {name.removeprefix("module.backbone."): tensor for name, tensor in state.items()}


def encode(kind: Kind, state: State, clip: Tensor, visible: list[int]) -> Tensor:
    """Tokens of one clip's `[c t h w]` visible tubelets, `[n, d]`."""
    tokens = []
    for index in visible:
        (t, r, c), (frames, height, width) = place(index), TUBELET
        pixels = clip[:, t * frames :, r * height :, c * width :][:, :frames, :height, :width]
        token = (state["patch_embed.proj.weight"] * pixels).sum(dim=(1, 2, 3, 4))
        token = token + state["patch_embed.proj.bias"]
        tokens.append(token + state["pos_embed"][0, index] if kind == "vjepa" else token)
    x = torch.stack(tokens)
    for number in range(_depth(state, "blocks.")):
        x = _transform(state, f"blocks.{number}", x, HEADS, rotation(kind, visible))
    return _layer_norm(state, "norm", x)


def predict(
    kind: Kind, state: State, context: Tensor, visible: list[int], target: list[int], token: int
) -> Tensor:
    """Predictions of one target set from one clip's context tokens, `[k, d]`."""
    known = _apply(state, "predictor_embed", context)
    x = torch.cat([known, state[f"mask_tokens.{token}"][0].expand(len(target), -1)])
    places = visible + target
    if kind == "vjepa":
        x = x + state["predictor_pos_embed"][0, places]
    for number in range(_depth(state, "predictor_blocks.")):
        rotate = rotation(kind, places)
        x = _transform(state, f"predictor_blocks.{number}", x, PREDICTOR_HEADS, rotate)
    return _apply(state, "predictor_proj", _layer_norm(state, "predictor_norm", x[len(visible) :]))
