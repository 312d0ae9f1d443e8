"""Recorded cases of modules: name of a case to a function that gives outputs by name."""

from collections.abc import Callable
from typing import Any, Literal

import timm
import torch
from tests.unchanged.fixed import even, filled, noise, ragged
from torch import Tensor, nn

from jepakit import EMATeacher, HierarchicalPyramid, MaskedPredictor, MaskedViT, linear
from jepakit.nn import (
    AttentionPool,
    CausalPredictor,
    Frames,
    Patches,
    SetEncoder,
    TemporalPool,
    TokenViT,
    Tubelets,
    VectorQuantizer,
    init_sincos_positions,
)

Outputs = dict[str, Tensor]

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
SWIN = {"window_size": 2, "embed_dim": 16, "depths": (1, 1, 2), "num_heads": (1,) * 3}
HIERA = {"embed_dim": 16, "stages": (1, 1, 1, 1), "num_heads": 1}
# Name of the case: timm's name, arguments, size of the images.
DROPPING: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "class token": ("vit_tiny_patch16_224", TINY, (48, 64)),
    "mean pool": ("vit_medium_patch16_gap_240", TINY, (64, 64)),
    "registers": ("vit_small_patch14_reg4_dinov2", TINY, (42, 42)),
    "distilled": ("deit_tiny_distilled_patch16_224", TINY, (64, 64)),
    "rotary": ("vit_small_patch16_dinov3", TINY, (48, 64)),
    "eva02": ("eva02_tiny_patch14_224", TINY, (56, 56)),
    "mixed rotary": ("vit_small_patch16_rope_mixed_224", TINY, (48, 64)),
    "beit": ("beit_base_patch16_224", TINY, (64, 64)),
    "relative": ("vit_relpos_base_patch16_cls_224", TINY, (64, 64)),
    "relative, shared": (
        "vit_srelpos_small_patch16_224",
        TINY | {"rel_pos_type": "bias"},
        (64, 64),
    ),
    "naflex": ("naflexvit_base_patch16_gap", TINY | {"pos_embed_grid_size": (3, 4)}, (48, 64)),
    "naflex, factorised": (
        "naflexvit_base_patch16_parfac_gap",
        TINY | {"pos_embed_grid_size": (4, 4)},
        (64, 64),
    ),
}
REPLACING: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN | {"num_classes": 0}, (64, 64)),
    "hiera": ("hiera_tiny_224", HIERA | {"num_classes": 0}, (64, 96)),
    "vit": ("vit_tiny_patch16_224", TINY, (48, 64)),
}


def _encoder(spec: tuple[str, dict[str, Any], tuple[int, int]], mode: str = "drop") -> MaskedViT:
    name, arguments, size = spec
    # NaFlexVit takes images of any size.
    sized = arguments if "naflex" in name else arguments | {"img_size": size}
    return filled(MaskedViT(timm.create_model(name, **sized), mask_mode=mode))


def dropping(kind: str) -> Outputs:
    encoder = _encoder(DROPPING[kind])
    images = noise(2, 3, *DROPPING[kind][2], key=1)
    context = ragged(encoder.grid_size, 2, key=2)
    seen = encoder(images, context)
    (seen * noise(*seen.shape, key=3)).sum().backward()
    moved = [p.grad.norm() for p in encoder.parameters() if p.grad is not None]
    with torch.no_grad():
        layers = encoder.forward_intermediates(images, [0, 1], context)
        return {
            "full": encoder(images),
            "context": seen,
            "context without padding": encoder(images, even(encoder.grid_size, 2, length=4)),
            "norms of gradients": torch.stack(moved),
            "first layer": layers[0],
            "features": encoder.extract_features(images),
        }


def replacing(kind: str) -> Outputs:
    encoder = _encoder(REPLACING[kind], "replace")
    images = noise(2, 3, *REPLACING[kind][2], key=1)
    with torch.no_grad():
        return {
            "full": encoder(images),
            "context": encoder(images, ragged(encoder.grid_size, 2, key=2)),
            "context without padding": encoder(images, even(encoder.grid_size, 2, length=4)),
            "features": encoder.extract_features(images),
        }


def sincos_positions() -> Outputs:
    encoder = _encoder(DROPPING["class token"])
    init_sincos_positions(encoder)
    return {"positions": encoder.backbone.pos_embed}


# Name of the case: grid, arguments.
PREDICTORS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "block by block": ((4, 5), {}),
    "joint": ((4, 5), {"joint": True}),
    "learned positions": ((4, 5), {"position": "learned"}),
    "rotary positions, joint": ((4, 5), {"position": "rope", "joint": True}),
    "another width": ((4, 5), {"out_dim": 10, "mlp_ratio": 2.0}),
    "text": ((11,), {"position": "rope"}),
    "video": ((2, 3, 4), {"joint": True}),
    "video, as V-JEPA 2": ((2, 3, 4), {"joint": True, "position": "rope-vjepa2"}),
    "video, half for time": ((2, 3, 4), {"uniform_power": False}),
    "levels": ((5, 6), {"num_levels": 3}),
    "levels, learned, joint": ((5, 6), {"num_levels": 2, "position": "learned", "joint": True}),
    "levels, rotary": ((5, 6), {"num_levels": 2, "position": "rope"}),
}


def predictor(kind: str) -> Outputs:
    grid, arguments = PREDICTORS[kind]
    shape = {"predictor_embed_dim": 24, "depth": 2, "num_heads": 2}
    module = filled(MaskedPredictor(grid, 12, **shape, **arguments))
    seen, asked = ragged(grid, 2, key=1), ragged(grid, 2, 3, key=2, share=0.3)
    context = noise(*seen.shape, 12, key=3).requires_grad_()
    out = module(context, seen, asked)
    (out * noise(*out.shape, key=4)).sum().backward()
    found = {
        "targets": out,
        "gradient": context.grad,
        "grid": module.predict_grid(context, seen),
        "without padding": module(
            noise(2, 5, 12, key=6), even(grid, 2, length=5), even(grid, 2, 3, length=4, key=7)
        ),
    }
    if "levels" in kind:
        found["coarse targets"] = module(context, seen, asked.coarsen(1))
        coarse = seen.coarsen(1)
        found["coarse context"] = module(noise(*coarse.shape, 12, key=5), coarse, asked)
    return found


# Name of the case: embedding, size of the inputs, arguments.
TOKEN_VITS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "clips": (lambda: Tubelets((2, 4, 3), 24), (3, 4, 12, 12), {"num_registers": 2}),
    "clips, as V-JEPA 2": (
        lambda: Tubelets((2, 4, 3), 24),
        (3, 4, 12, 12),
        {"position": "rope-vjepa2"},
    ),
    "clips, half for time": (
        lambda: Tubelets((2, 4, 3), 24),
        (3, 4, 12, 12),
        {"position": "sincos", "uniform_power": False, "layer_scale": 1.0},
    ),
    "clips, registers repeated": (
        lambda: Tubelets((2, 4, 3), 24),
        (3, 4, 12, 12),
        {"position": "learned", "num_registers": 2, "repeat_registers": True},
    ),
    "spectrograms": (lambda: Patches((4, 2), 24, 1), (1, 12, 8), {"position": "sincos"}),
    "series": (lambda: Frames(4, 24, 2), (2, 28), {"mlp_ratio": 2.0}),
}


def token_vit(kind: str) -> Outputs:
    embed, size, arguments = TOKEN_VITS[kind]
    module = embed()
    grid = module.grid_size_of(size[1:])
    encoder = filled(TokenViT(grid, 24, 2, 2, embed=module, **arguments))
    inputs, context = noise(2, *size, key=1), ragged(grid, 2, key=2)
    seen = encoder(inputs, context)
    (seen * noise(*seen.shape, key=3)).sum().backward()
    with torch.no_grad():
        return {
            "full": encoder(inputs),
            "context": seen,
            "norms of gradients": torch.stack([p.grad.norm() for p in encoder.parameters()]),
            "first layer": encoder.forward_intermediates(inputs, [0], context)[0],
            "features": encoder.extract_features(inputs, context),
        }


def position_tables() -> Outputs:
    return {"image": _table((4, 4)), "video": _table((2, 3, 4)), "text": _table((9,))}


def _table(grid: tuple[int, ...]) -> Tensor:
    shape = {"predictor_embed_dim": 24, "depth": 1, "num_heads": 2}
    kinds: list[Literal["rope", "sincos"]] = ["rope", "sincos"]
    predictors = [MaskedPredictor(grid, 8, position=kind, **shape) for kind in kinds]
    return torch.cat([each._position_rows(grid, 0).flatten() for each in predictors])


# Name of the case: grid, arguments.
PYRAMIDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mean": ((5, 6), {}),
    "mean, valid if all": ((5, 6), {"valid_if": "all"}),
    "max": ((5, 6), {"pool": "max"}),
    "convolution": ((5, 6), {"pool": "conv"}),
    "attention": ((5, 6), {"pool": "attention"}),
    "added": ((5, 6), {"fusion": "fpn-add"}),
    "added, bilinear": ((5, 6), {"fusion": "fpn-add", "upsample": "bilinear"}),
    "beside": ((5, 6), {"fusion": "fpn-concat"}),
    "beside, bilinear": ((5, 6), {"fusion": "fpn-concat", "upsample": "bilinear"}),
    "all of it": (
        (5, 6),
        {"pool": "attention", "fusion": "fpn-add", "projection": "linear", "norm": "layer"},
    ),
    "text": ((13,), {"pool": "conv", "num_levels": 4, "norm": "layer"}),
    "video": ((2, 4, 3), {"pool": "conv", "num_levels": 2, "fusion": "fpn-add"}),
    "video, attention": (
        (2, 4, 3),
        {"pool": "attention", "fusion": "fpn-add", "upsample": "bilinear"},
    ),
}


def pyramid(kind: str) -> Outputs:
    grid, arguments = PYRAMIDS[kind]
    module = filled(HierarchicalPyramid(grid, 6, **arguments))
    tokens = ragged(grid, 2, key=1)
    part = noise(*tokens.shape, 6, key=2).requires_grad_()
    whole = noise(2, tokens.num_positions, 6, key=3)
    levels = module(part, tokens)
    sum((x * noise(*x.shape, key=4)).sum() for x, _ in levels).backward()
    unpadded = module(noise(2, 5, 6, key=5), even(grid, 2, length=5, key=6))
    found = {"gradient": part.grad, "without padding, last level": unpadded[-1].features}
    for number, (some, everything) in enumerate(zip(levels, module(whole), strict=True)):
        found[f"part, level {number}"] = some.features
        found[f"part, cells of level {number}"] = some.tokens.idx
        found[f"part, validity of level {number}"] = some.tokens.valid
        found[f"whole, level {number}"] = everything.features
    return found | {"last level, trimmed": levels[-1].trimmed().features}


# Name of the case: the pool.
POOLS: dict[str, Callable[[], nn.Module]] = {
    "attention over a set": lambda: AttentionPool(8, 2, num_heads=2),
    "attention over time": lambda: TemporalPool(8, 7),
    "softmax over time": lambda: TemporalPool(8, 7, mode="softmax"),
    "last step": lambda: TemporalPool(8, 7, mode="last"),
    "set encoder": lambda: SetEncoder(8, 12, 2, num_heads=2),
}


def pool(kind: str) -> Outputs:
    new = POOLS[kind]()
    found = {}
    if hasattr(new, "scores"):
        found["scores at first"] = new.scores.double()
    module, features = filled(new), noise(3, 5, 8, key=1).requires_grad_()
    out = module(features, noise(3, 5, key=2) < 0.5)
    (out * noise(*out.shape, key=3)).sum().backward()
    return found | {"ragged": out, "gradient": features.grad, "all": module(features)}


# Name of the case: grid, arguments.
CAUSAL_PREDICTORS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "vectors": ((1,), {}),
    "actions": ((2, 3), {"action_dim": 2}),
    "actions and states": ((5,), {"action_dim": 2, "state_dim": 3, "normalize": True}),
}


def causal_predictor(kind: str) -> Outputs:
    grid, arguments = CAUSAL_PREDICTORS[kind]
    shape = {"predictor_embed_dim": 24, "depth": 2, "num_heads": 2}
    module = filled(CausalPredictor(grid, 6, **shape, **arguments))
    features = noise(2, 4, torch.Size(grid).numel(), 6, key=1).requires_grad_()
    actions = noise(2, 4, 2, key=2) if module.action_dim else None
    states = noise(2, 4, 3, key=3) if module.state_dim else None
    valid = torch.tensor([[True, True, True, True], [True, False, True, False]])
    out = module(features, actions, states, valid)
    (out * noise(*out.shape, key=4)).sum().backward()
    plans = noise(2, 3, 2, module.action_dim, key=5)
    past = None if actions is None else actions[:, :-1]
    rollout = module.rollout(features, plans, states, valid, past_actions=past)
    return {
        "ragged": out,
        "gradient": features.grad,
        "all": module(features, actions, states),
        "rollout": rollout,
    }


# Arguments of the quantizer.
QUANTIZERS: dict[str, dict[str, Any]] = {
    "straight-through": {},
    "cosine": {"cosine": True, "momentum": 0.9},
    "drawn": {"temperature": 0.7, "commitment_weight": 1.0},
    "drawn, schedule": {"temperature": linear(1.0, 0.0, steps=3)},
    "no refresh": {"refresh_ratio": 0.0, "smoothing": 1e-2},
}


def quantizer(kind: str) -> Outputs:
    module = VectorQuantizer(12, 5, **QUANTIZERS[kind]).double().train()
    generator = torch.Generator().manual_seed(5)
    if kind != "cosine":  # that one takes its first codes from the data
        module.start_from(noise(12, 5, key=1))
    found = {}
    for step in range(3):
        features = noise(2, 20, 5, key=2 + step).requires_grad_()
        valid = noise(2, 20, key=12 + step) < 1
        given = step if "schedule" in kind else None
        out = module(features, valid, step=given, generator=generator)
        (out.loss + (out.quantized * noise(2, 20, 5, key=7)).sum()).backward()
        numbers = torch.stack([out.loss, out.perplexity, out.usage_ratio])
        found |= {
            f"step {step}": out.quantized,
            f"step {step}, codes": out.indices,
            f"step {step}, numbers": numbers,
            f"step {step}, gradient": features.grad,
            f"step {step}, codebook": module.codebook,
        }
    module.eval()
    last = module(noise(2, 20, 5, key=9))
    return found | {"eval": last.quantized, "eval, loss": last.loss}


def teacher() -> Outputs:
    student = filled(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))).train()
    average = EMATeacher(student, momentum=linear(0.5, 1.0, steps=4))
    found = {"at first": average(noise(5, 4, key=1))}
    for step in range(3):
        with torch.no_grad():
            for number, parameter in enumerate(student.parameters()):
                parameter.add_(noise(*parameter.shape, key=10 * step + number), alpha=0.1)
        student(noise(5, 4, key=2 + step))
        average.update(student)
        found[f"after update {step + 1}"] = average(noise(5, 4, key=1))
    values = [value.double().flatten() for value in average.module.state_dict().values()]
    momentum = torch.tensor([average.momentum, average.step])
    return found | {"state": torch.cat(values), "momentum, step": momentum}


def types() -> dict[str, list[str]]:
    """Of outputs, for modules and inputs of each type; a quantizer stays in float32."""
    found: dict[str, list[str]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for pool in ("avg", "conv", "attention"):
            module = HierarchicalPyramid((4, 4), 6, pool=pool, fusion="fpn-add").to(dtype)
            levels = module(noise(2, 16, 6).to(dtype))
            found.setdefault(f"pyramid, {pool}", []).append(_type(levels[-1].features))
        seen, asked = ragged((4, 4), 2), ragged((4, 4), 2, 3)
        for position in ("sincos", "rope", "learned"):
            module = MaskedPredictor(
                (4, 4), 6, predictor_embed_dim=8, depth=1, num_heads=1, position=position
            ).to(dtype)
            out = module(noise(*seen.shape, 6).to(dtype), seen, asked)
            found.setdefault(f"predictor, {position}", []).append(_type(out))
        out = VectorQuantizer(4, 6)(noise(2, 9, 6).to(dtype))
        kinds = [_type(part) for part in out]
        found.setdefault("quantizer", []).append(", ".join(kinds))
    return found


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype}".removeprefix("torch.")


MODULES: dict[str, Callable[[], Outputs]] = {
    **{f"encoder, {k}": lambda k=k: dropping(k) for k in DROPPING},
    **{f"replacing encoder, {k}": lambda k=k: replacing(k) for k in REPLACING},
    **{f"token encoder, {k}": lambda k=k: token_vit(k) for k in TOKEN_VITS},
    "sine-cosine positions of an encoder": sincos_positions,
    **{f"predictor, {k}": lambda k=k: predictor(k) for k in PREDICTORS},
    "position tables of a predictor": position_tables,
    **{f"pyramid, {k}": lambda k=k: pyramid(k) for k in PYRAMIDS},
    **{f"pool, {k}": lambda k=k: pool(k) for k in POOLS},
    **{f"causal predictor, {k}": lambda k=k: causal_predictor(k) for k in CAUSAL_PREDICTORS},
    **{f"quantizer, {k}": lambda k=k: quantizer(k) for k in QUANTIZERS},
    "teacher": teacher,
}
