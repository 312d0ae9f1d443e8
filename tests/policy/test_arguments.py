"""Arguments as configuration files and NumPy hold them, for the whole public API.

Every public class and function that takes numbers or sequences of numbers is called with plain
Python values and with the same values as lists, `torch.Size`, OmegaConf's `ListConfig` and NumPy's
arrays, ints and floats. The results are the same, and what is stored is plain Python.

Trap: `MultiBlockMask([14, 14])`, `target_scale=[0.15, 0.2]` and `np.int64(4)`, as a YAML file or a
sweep gives them, are refused.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import ListConfig, OmegaConf
from tests.policy.test_public_api import OBJECTS
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import TensorDataset

import jepakit
from jepakit import data, diagnostics, evaluation, losses, masking, optim, schedules
from jepakit import nn as parts
from jepakit.teacher import EMATeacher
from jepakit.testing import assert_predictor_contract, assert_sampler_contract

Variant = Callable[[Any], Any]


def replaced(value: Any, change: Variant) -> Any:
    """`change` at every number, and at every sequence of numbers as a whole."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float) or (
        type(value) in (tuple, list) and value and all(type(v) in (int, float) for v in value)
    ):
        return change(value)
    return value


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def as_size(value: Any) -> Any:
    if isinstance(value, tuple) and all(type(v) is int for v in value):
        return torch.Size(value)
    return value


def as_omegaconf(value: Any) -> Any:
    return OmegaConf.create(list(value)) if isinstance(value, tuple | list) else value


def as_numpy(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return np.array(value)
    return np.int64(value) if isinstance(value, int) else np.float64(value)


def as_numpy_scalars(value: Any) -> Any:
    """Small types: the float32 nearest to 0.1 is taken as 0.1, the decimal that it prints."""
    if isinstance(value, tuple | list):
        return [as_numpy_scalars(entry) for entry in value]
    if isinstance(value, int):
        return np.int32(value)
    return np.float32(value)


def as_ints(value: Any) -> Any:
    """An int where a float is whole: `1` for `1.0`, as YAML writes it."""
    if isinstance(value, tuple | list):
        return type(value)(as_ints(entry) for entry in value)
    return int(value) if isinstance(value, float) and value == int(value) else value


VARIANTS = [as_list, as_size, as_omegaconf, as_numpy, as_numpy_scalars, as_ints]


GRID = (14, 14)
FEATURES = torch.linspace(-1, 1, 2 * 12 * 6).view(2, 12, 6).sin()
ROWS = FEATURES.flatten(0, 1)
VIEWS = torch.stack([FEATURES, FEATURES.flip(0)])
SETS = [evaluation.Features(ROWS, torch.arange(24) % 3) for _ in range(2)]
IMAGES = TensorDataset(torch.linspace(0, 1, 24 * 3 * 16).view(24, 3, 4, 4), torch.arange(24) % 3)


class ClipEncoder(nn.Identity):
    """Features of clips: their pixels, which are the tokens."""

    def grid_size_of(self, input_size: Sequence[int]) -> tuple[int, ...]:
        return tuple(input_size)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.flatten(2).transpose(1, 2)


CLIP_ENCODER = ClipEncoder()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def encode(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(2).transpose(1, 2) + 0.1


# For each public name the call, and arguments that are numbers or sequences of numbers. Others
# are bound beforehand.
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    # tokens
    "TokenSet": (
        lambda grid_size: jepakit.TokenSet(
            torch.tensor([[0, 3]]), torch.ones(1, 2, dtype=torch.bool), grid_size
        ),
        {"grid_size": (2, 2)},
    ),
    "TokenSet.from_mask": (
        lambda grid_size: jepakit.TokenSet.from_mask(torch.eye(4, dtype=torch.bool), grid_size),
        {"grid_size": (2, 2)},
    ),
    "TokenSet.from_indices": (
        lambda grid_size: jepakit.TokenSet.from_indices(torch.tensor([[3, 1]]), grid_size),
        {"grid_size": (2, 2)},
    ),
    "TokenSet.full": (jepakit.TokenSet.full, {"grid_size": (2, 2), "batch_shape": (3,)}),
    "TokenSet.coarsen": (
        lambda num_halvings: jepakit.TokenSet.full((4, 4), (2,)).coarsen(num_halvings),
        {"num_halvings": 1},
    ),
    # masking
    "MultiBlockMask": (
        masking.MultiBlockMask,
        {
            "grid_size": (4, 14, 14),
            "num_targets": 3,
            "target_scale": (0.1, 0.15),
            "target_aspect_ratio": (0.5, 2.0),
            "temporal_scale": (0.5, 1.0),
            "context_scale": (0.85, 1.0),
            "context_frames_ratio": 0.75,
            "min_context_coverage": 0.25,
            "context_length": 40,
        },
    ),
    "MultiBlockMask.from_ijepa_config": (
        masking.MultiBlockMask.from_ijepa_config,
        {
            "grid_size": GRID,
            "enc_mask_scale": (0.85, 1.0),
            "pred_mask_scale": (0.15, 0.2),
            "aspect_ratio": (0.75, 1.5),
            "nenc": 1,
            "npred": 4,
            "min_keep": 10,
        },
    ),
    "RandomMask": (
        masking.RandomMask,
        {"grid_size": GRID, "target_ratio": 0.5, "context_length": 20},
    ),
    "BlockMask": (
        masking.BlockMask,
        {
            "grid_size": GRID,
            "target_ratio": 0.5,
            "block_scale": (0.1, 0.25),
            "block_aspect_ratio": (0.5, 2.0),
        },
    ),
    "InverseBlockMask": (
        masking.InverseBlockMask,
        {
            "grid_size": GRID,
            "context_ratio": 0.25,
            "block_scale": (0.125, 0.25),
            "block_aspect_ratio": (1.0, 2.0),
        },
    ),
    "CausalMask": (
        masking.CausalMask,
        {
            "grid_size": (8, 4, 4),
            "axis": 0,
            "num_context_steps": (2, 4),
            "num_targets": 2,
            "num_target_steps": 2,
        },
    ),
    "TubeMask": (
        lambda num_frames: masking.TubeMask(num_frames, masking.RandomMask((4, 4))),
        {"num_frames": 3},
    ),
    "vjepa_masks": (
        masking.vjepa_masks,
        {"grid_size": (4, 8, 8), "min_context_coverage": (0.25, 0.125)},
    ),
    "NestedMask": (
        lambda grid_size: masking.NestedMask(grid_size, masking.MultiBlockMask((4, 4))),
        {"grid_size": GRID},
    ),
    "ReferenceMultiBlockMask": (
        masking.ReferenceMultiBlockMask,
        {
            "grid_size": GRID,
            "num_targets": 3,
            "target_scale": (0.15, 0.2),
            "target_aspect_ratio": (0.75, 1.5),
            "context_scale": (0.85, 1.0),
            "min_keep": 8,
        },
    ),
    "MaskCollator": (
        lambda seed: masking.MaskCollator(masking.RandomMask((4, 4)), seed=seed),
        {"seed": 3},
    ),
    "MaskCollator.set_epoch": (
        lambda epoch: masking.MaskCollator(masking.RandomMask((4, 4))).set_epoch(epoch),
        {"epoch": 3},
    ),
    "masks_from_indices": (
        lambda grid_size: masking.masks_from_indices(
            torch.tensor([[0]]), [torch.tensor([[1, 2]])], grid_size
        ),
        {"grid_size": (2, 2)},
    ),
    "audit_masks": (
        lambda num_batches, batch_size: (
            masking.audit_masks(
                masking.RandomMask((4, 4)),
                num_batches=num_batches,
                batch_size=batch_size,
                generator=seeded(),
            ).context_frequency
        ),
        {"num_batches": 2, "batch_size": 3},
    ),
    # nn
    "MaskedPredictor": (
        parts.MaskedPredictor,
        {
            "grid_size": (4, 4),
            "encoder_dim": 16,
            "predictor_embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "drop_path": 0.5,
            "num_mask_tokens": 2,
            "num_levels": 2,
            "out_dim": 8,
        },
    ),
    "Block": (
        parts.Block,
        {"dim": 8, "num_heads": 2, "mlp_ratio": 2.0, "drop_path": 0.5, "layer_scale": 0.5},
    ),
    "Tubelets": (
        parts.Tubelets,
        {"tubelet_size": (2, 4, 4), "embed_dim": 8, "in_channels": 2},
    ),
    "Patches": (parts.Patches, {"patch_size": (4, 2), "embed_dim": 8, "in_channels": 2}),
    "Frames": (parts.Frames, {"frame_size": 4, "embed_dim": 8, "in_channels": 2}),
    "TokenViT": (
        lambda **arguments: parts.TokenViT(embed=parts.Tubelets((2, 4, 4), 24), **arguments),
        {
            "grid_size": (2, 3, 4),
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "drop_path": 0.5,
            "layer_scale": 0.5,
            "num_registers": 2,
        },
    ),
    "TokenViT.inflate": (
        lambda **arguments: parts.TokenViT.inflate(
            timm.create_model(
                "vit_tiny_patch16_224",
                img_size=32,
                embed_dim=8,
                depth=1,
                num_heads=2,
                num_classes=0,
            ),
            **arguments,
        ),
        {"tubelet_size": 2, "num_frames": 4},
    ),
    "HierarchicalPyramid": (
        parts.HierarchicalPyramid,
        {"grid_size": (8, 8), "dim": 16, "num_levels": 2},
    ),
    "AttentionPool": (parts.AttentionPool, {"dim": 8, "num_queries": 2, "num_heads": 2}),
    "SetEncoder": (
        parts.SetEncoder,
        {"in_dim": 3, "dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0},
    ),
    "TemporalPool": (parts.TemporalPool, {"dim": 8, "max_len": 5, "num_heads": 2}),
    "CausalPredictor": (
        parts.CausalPredictor,
        {
            "grid_size": (2, 2),
            "encoder_dim": 8,
            "action_dim": 2,
            "state_dim": 3,
            "predictor_embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "drop_path": 0.5,
        },
    ),
    "VectorQuantizer": (
        parts.VectorQuantizer,
        {
            "num_codes": 8,
            "dim": 4,
            "momentum": 0.5,
            "commitment_weight": 1.0,
            "temperature": 1.0,
            "refresh_ratio": 0.25,
            "smoothing": 0.5,
        },
    ),
    "EMATeacher": (lambda momentum: EMATeacher(nn.Linear(2, 2), momentum), {"momentum": 0.5}),
    # schedules
    "constant": (schedules.constant, {"value": 1.0}),
    "linear": (schedules.linear, {"start": 0.5, "end": 1.0, "steps": 10}),
    "cosine": (schedules.cosine, {"start": 0.5, "end": 1.0, "steps": 10}),
    "warmup_cosine": (
        schedules.warmup_cosine,
        {"peak": 1.0, "end": 0.5, "warmup_steps": 2, "steps": 10, "start": 0.25},
    ),
    # losses
    "LearnableTemperature": (
        losses.LearnableTemperature,
        {"low": 0.125, "high": 1.0, "initial": 0.5},
    ),
    "FeatureQueue": (losses.FeatureQueue, {"size": 8, "dim": 4}),
    "UncertaintyWeights": (losses.UncertaintyWeights, {"num_levels": 3, "max_weight": 4.0}),
    "SoftOptimalWeights": (losses.SoftOptimalWeights, {"temperature": 2.0}),
    "decay_weights": (losses.decay_weights, {"num_levels": 3, "decay_ratio": 0.5}),
    "TargetCentering": (losses.TargetCentering, {"grid_size": GRID, "dim": 4, "momentum": 0.5}),
    "LossSum": (lambda weight: losses.LossSum({"prediction": weight}), {"weight": 1.0}),
    "hierarchical_loss": (
        lambda weights: jepakit.hierarchical_loss(
            [FEATURES] * 2,
            [FEATURES.flip(0)] * 2,
            [torch.ones(2, 12, dtype=torch.bool)] * 2,
            weights=weights,
        )[0],
        {"weights": (1.0, 0.5)},
    ),
    "masked_smooth_l1": (
        lambda beta: losses.masked_smooth_l1(
            FEATURES, FEATURES.flip(0), torch.ones(2, 12, dtype=torch.bool), beta=beta
        ),
        {"beta": 1.0},
    ),
    "masked_huber": (
        lambda delta: losses.masked_huber(
            FEATURES, FEATURES.flip(0), torch.ones(2, 12, dtype=torch.bool), delta=delta
        ),
        {"delta": 1.0},
    ),
    "vicreg": (
        lambda **arguments: losses.vicreg(FEATURES, FEATURES.flip(0), **arguments),
        {
            "invariance_weight": 25.0,
            "variance_weight": 25.0,
            "covariance_weight": 1.0,
            "target_std": 1.0,
            "eps": 0.0001,
        },
    ),
    "variance_loss": (
        lambda **arguments: losses.variance_loss(FEATURES, **arguments),
        {"target_std": 1.0, "eps": 0.0001},
    ),
    "barlow": (
        lambda **arguments: losses.barlow(FEATURES, FEATURES.flip(0), **arguments),
        {"off_diagonal_weight": 1.0, "eps": 1e-5},
    ),
    "next_step_loss": (
        lambda rollout_steps: losses.next_step_loss(
            parts.CausalPredictor((1,), 4, predictor_embed_dim=8, depth=1, num_heads=2),
            torch.ones(2, 4, 1, 4),
            rollout_steps=rollout_steps,
        )[0],
        {"rollout_steps": 2},
    ),
    "koleo": (lambda **arguments: losses.koleo(FEATURES, **arguments), {"eps": 1e-8}),
    "sigreg": (
        lambda **arguments: losses.sigreg(FEATURES, generator=seeded(), **arguments),
        {"num_slices": 8, "num_points": 5, "t_max": 3.0},
    ),
    "lejepa_loss": (
        lambda **arguments: losses.lejepa_loss(VIEWS, generator=seeded(), **arguments),
        {"weight": 0.5, "num_global_views": 2, "num_slices": 8, "num_points": 5, "t_max": 3.0},
    ),
    "invariance_loss": (
        lambda **arguments: losses.invariance_loss(VIEWS, **arguments),
        {"num_global_views": 2},
    ),
    "info_nce": (
        lambda **arguments: losses.info_nce(FEATURES, FEATURES.flip(0), **arguments),
        {"temperature": 1.0},
    ),
    "param_groups": (
        lambda weight_decay: optim.param_groups(nn.Linear(2, 2), weight_decay)[0]["weight_decay"],
        {"weight_decay": 1.0},
    ),
    "set_image_size": (
        lambda image_size: optim.set_image_size(
            jepakit.MaskedViT(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=16)),
            image_size,
            optimizer=None,
        ),
        {"image_size": (32, 48)},
    ),
    # diagnostics
    "CollapseMonitor": (
        diagnostics.CollapseMonitor,
        {
            "every": 2,
            "patience": 3,
            "std_ratio": 0.125,
            "slow_std_ratio": 0.5,
            "rank_ratio": 0.25,
            "dead_ratio": 0.5,
        },
    ),
    "FeatureStatistics": (
        diagnostics.FeatureStatistics,
        {"dim": 6, "uniformity_t": 2.0},
    ),
    "LidarStatistics": (diagnostics.LidarStatistics, {"dim": 6, "ridge": 0.5}),
    "alignment": (
        lambda exponent: diagnostics.alignment(FEATURES, FEATURES.flip(0), exponent=exponent),
        {"exponent": 2.0},
    ),
    "alpha_req": (
        lambda **arguments: diagnostics.alpha_req(FEATURES, **arguments),
        {"first": 1, "last": 5},
    ),
    "inverse_dynamics_r2": (
        lambda **arguments: diagnostics.inverse_dynamics_r2(
            FEATURES.view(4, -1, FEATURES.shape[-1]),
            FEATURES.view(4, -1, FEATURES.shape[-1])[:, 1:, :2],
            **arguments,
        ),
        {"held_out": 0.5, "ridge": 0.5},
    ),
    "lidar": (lambda ridge: diagnostics.lidar(FEATURES, ridge=ridge), {"ridge": 0.5}),
    "uniformity": (lambda t: diagnostics.uniformity(FEATURES, t=t), {"t": 2.0}),
    "target_retrieval": (
        lambda k: diagnostics.target_retrieval(
            FEATURES.unsqueeze(1), FEATURES, jepakit.TokenSet.full((3, 4), (2, 1)), k=k
        ),
        {"k": 2},
    ),
    # evaluation
    "nearest_neighbours": (
        lambda k: evaluation.nearest_neighbours(*SETS, k=k),
        {"k": 3},
    ),
    "knn_accuracy": (
        lambda **arguments: evaluation.knn_accuracy(*SETS, **arguments),
        {"k": 3, "temperature": 0.5},
    ),
    "linear_probe": (
        lambda **arguments: evaluation.linear_probe(*SETS, **arguments),
        {"C": (0.5, 1.0), "max_iter": 200},
    ),
    "attentive_probe": (
        lambda **arguments: evaluation.attentive_probe(encode, IMAGES, IMAGES, **arguments),
        {"num_heads": 1, "epochs": 1, "lr": (0.25,), "weight_decay": 0.5, "batch_size": 8},
    ),
    "evaluate": (
        lambda **arguments: evaluation.evaluate(
            lambda images: images.flatten(1), IMAGES, IMAGES, **arguments
        ),
        {"k": 3, "num_images": 20, "batch_size": 8, "num_workers": 0},
    ),
    "TimeSteps": (
        lambda repeats: evaluation.TimeSteps(CLIP_ENCODER, repeats)(torch.ones(1, 1, 2, 4, 4)),
        {"repeats": 2},
    ),
    # data
    "PixelStatistics": (data.PixelStatistics, {"mean": (0.5,), "std": (0.25,)}),
    "ResumableBatches": (
        lambda **arguments: list(data.ResumableBatches(**arguments)),
        {
            "size": 8,
            "batch_size": 2,
            "steps": 3,
            "seed": 0,
            "rank": 1,
            "world_size": 2,
            "first_step": 1,
        },
    ),
    "ResumableBatches.set_epoch": (
        lambda epoch: data.ResumableBatches(8, 4, seed=0).set_epoch(epoch),
        {"epoch": 3},
    ),
    "textured_shapes": (
        lambda **arguments: data.textured_shapes(**arguments)[0].tensors[0],
        {"num_train": 3, "num_test": 2},
    ),
    "moving_textures": (
        lambda **arguments: data.moving_textures(**arguments)[0].tensors[0],
        {"num_train": 3, "num_test": 2},
    ),
    "random_crops": (
        lambda scale: data.random_crops(torch.ones(2, 1, 8, 8), scale, generator=seeded()),
        {"scale": (0.5, 1.0)},
    ),
    # testing
    "assert_sampler_contract": (
        lambda **arguments: assert_sampler_contract(masking.RandomMask((4, 4)), **arguments),
        {"batch_size": 4, "num_samples": 64, "seed": 1, "min_context_tokens": 4},
    ),
    "assert_predictor_contract": (
        lambda **arguments: assert_predictor_contract(
            parts.MaskedPredictor((4, 4), 8, predictor_embed_dim=8, depth=1, num_heads=1),
            **arguments,
        ),
        {
            "grid_size": (4, 4),
            "encoder_dim": 8,
            "out_dim": 8,
            "batch_size": 3,
            "num_targets": 2,
            "tolerance": 0.0001,
            "seed": 1,
        },
    ),
}

# Public names whose annotations hold numbers, and why they have no case.
EXCEPT = {
    "EpochIndex": "an int with epoch and step, built by ResumableBatches",
    "Indexed": "a record, built by IndexedDataset",
    "IndexedDataset": "its index comes from a sampler",
    "MaskAudit": "a record, built by audit_masks",
    "MaskSampler": "a protocol",
    "Collapse": "a record, built by CollapseMonitor",
    "FeatureReport": "a record, built by FeatureStatistics",
    "PixelStatistics.from_dataset": "takes a data set",
    "extract_features": "of its arguments only the device may be a number",
    "load_clips": "reads files; its numbers are checked as others are",
    "load_images": "reads files or downloads; image_size is checked as others are",
    "ijepa_checkpoint": "epoch is written to a file as it is",
    "load_ijepa": "reads a file; steps_per_epoch is checked as others are",
    "load_vjepa": "reads a file; steps_per_epoch is checked as others are",
    "load_vjepa2": "reads a file; steps_per_epoch is checked as others are",
    "vjepa2_checkpoint": "epoch is written to a file as it is",
    "vjepa_checkpoint": "epoch is written to a file as it is",
    "plot_curves": "takes points of curves",
    "plot_masks": "draws; num_images is checked as others are",
    "plot_neighbours": "draws; num_queries is checked as others are",
    "plot_retrieval": "draws; num_images is checked as others are",
    "plot_patch_pca": "draws; num_images is checked as others are",
    "assert_causal_contract": "takes numbers, as assert_predictor_contract does",
    "assert_order_contract": "takes numbers, as assert_predictor_contract does",
    "assert_set_contract": "takes numbers, as assert_predictor_contract does",
    "assert_encoder_contract": "takes a tolerance and a seed, as assert_predictor_contract does",
    "assert_loss_contract": "takes a tolerance and a seed, as assert_predictor_contract does",
    "assert_teacher_contract": "takes a seed, as assert_predictor_contract does",
    "flat_masks": "a strategy",
    "grid_sizes": "a strategy",
    "token_sets": "a strategy",
}


def shown(result: Any) -> Any:
    """A text in which two equivalent calls must agree."""
    if isinstance(result, nn.Module):
        shapes = {
            name: tuple(value.shape)
            for name, value in result.state_dict().items()
            if isinstance(value, torch.Tensor)
        }
        return f"{result!r} {shapes}"
    leaves = pytree.tree_leaves(result)
    if leaves and all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return [leaf.tolist() for leaf in leaves]
    return re.sub(" at 0x[0-9a-f]+", "", repr(result))


def stored(value: Any, name: str, depth: int = 0) -> list[str]:
    """Names of stored values that are not plain Python."""
    if isinstance(value, np.generic | np.ndarray | ListConfig | torch.Size):
        return [f"{name}: {type(value).__name__}"]
    found: list[str] = []
    if isinstance(value, tuple | list):
        for number, entry in enumerate(value):
            found += stored(entry, f"{name}[{number}]", depth + 1)
    elif type(value).__module__.startswith("jepakit") and depth < 4:
        for key, entry in getattr(value, "__dict__", {}).items():
            if key not in ("_modules", "_parameters", "_buffers"):
                found += stored(entry, f"{name}.{key}", depth + 1)
    return found


@pytest.mark.parametrize("change", VARIANTS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", CASES)
def test_values_of_configuration_files_are_taken(name: str, change: Variant) -> None:
    call, arguments = CASES[name]
    torch.manual_seed(0)
    plain = call(**arguments)
    torch.manual_seed(0)
    other = call(**{key: replaced(value, change) for key, value in arguments.items()})
    assert shown(other) == shown(plain)
    assert not stored(other, name)


@pytest.mark.parametrize("name", CASES)
def test_bool_is_no_number(name: str) -> None:
    """Trap: `num_targets=True` is one target."""
    call, arguments = CASES[name]
    for key, value in arguments.items():
        if isinstance(value, int | float):
            with pytest.raises((TypeError, ValueError)):
                call(**arguments | {key: True})


def test_every_public_name_that_takes_numbers_has_a_case() -> None:
    numbers = re.compile(r"\b(int|float)\b")
    missing = set()
    for name, obj in OBJECTS.items():
        if inspect.isclass(obj) and issubclass(obj, Exception | tuple):
            continue
        try:
            signature = inspect.signature(obj)
        except ValueError:
            continue
        hints = [str(parameter.annotation) for parameter in signature.parameters.values()]
        if any(numbers.search(hint) for hint in hints):
            missing.add(name)
    missing -= {*CASES, *EXCEPT}
    assert not missing, f"without a case: {sorted(missing)}"
    assert not set(EXCEPT) & set(CASES)


def test_sequences_stay_sequences() -> None:
    """The variants do what they say, so that a case cannot pass by being left as it is."""
    assert isinstance(replaced((1, 2), as_list), list)
    assert isinstance(replaced((1, 2), as_size), torch.Size)
    assert isinstance(replaced((0.5, 2), as_omegaconf), Sequence)
    assert isinstance(replaced((1, 2), as_numpy), np.ndarray)
    assert isinstance(replaced(4, as_numpy), np.int64)
    assert isinstance(replaced(1.0, as_ints), int)
