"""Recorded cases of losses, diagnostics, data and the rest: name of a case to its result.

`FUNCTIONS` give tensors by name, `FACTS` what JSON can hold.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from tests.unchanged.fixed import filled, noise, ragged, valid_rows
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from jepakit import (
    CollapseMonitor,
    HierarchicalPyramid,
    MaskedPredictor,
    MaskedViT,
    MultiBlockMask,
    TokenSet,
    constant,
    cosine,
    hierarchical_loss,
    linear,
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
    mean_tokens,
    normalize_targets,
    put_tokens,
    take_tokens,
    warmup_cosine,
)
from jepakit.data import PixelStatistics, ResumableBatches, random_crops, textured_shapes
from jepakit.diagnostics import (
    FeatureStatistics,
    LidarStatistics,
    alignment,
    alpha_req,
    effective_rank,
    explained_variance,
    feature_std,
    isotropy,
    lidar,
    mean_predictor_loss,
    norm_drift,
    rankme,
    teacher_student_cosine,
    uniformity,
)
from jepakit.evaluation import (
    Features,
    attentive_probe,
    evaluate,
    extract_features,
    knn_accuracy,
    linear_probe,
)
from jepakit.losses import (
    FeatureQueue,
    LearnableTemperature,
    LossSum,
    SoftOptimalWeights,
    UncertaintyWeights,
    barlow,
    covariance_loss,
    decay_weights,
    info_nce,
    invariance_loss,
    koleo,
    lejepa_loss,
    relational_loss,
    sigreg,
    variance_loss,
    vicreg,
)
from jepakit.masking import ReferenceMultiBlockMask, audit_masks
from jepakit.optim import param_groups

Outputs = dict[str, Tensor]

# Losses: called with predictions, targets [3 7 6] and validity [3 7].
MASKED = {
    "squares": masked_mse,
    "absolute": masked_l1,
    "smooth": masked_smooth_l1,
    "smooth, other bend": partial(masked_smooth_l1, beta=0.4),
    "huber": masked_huber,
    "huber, other bend": partial(masked_huber, delta=0.4),
    "cosine": masked_cosine,
}
REDUCTIONS = ("mean", "sum", "sample", "none")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _pair(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of several views, for two."""
    return lambda x, y, v, **options: loss(torch.stack([x, y]), torch.stack([v, v]), **options)


def _unmasked(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    return vicreg(x, y) + barlow(x, y) + koleo(x) + info_nce(x, y) + sigreg(x, generator=seeded())


BATCH: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "vicreg": vicreg,
    "vicreg, other weights": partial(
        vicreg,
        invariance_weight=2.0,
        variance_weight=3.0,
        covariance_weight=5.0,
        target_std=2.0,
        eps=1e-2,
    ),
    "variance": lambda x, y, v: variance_loss(x, v, target_std=1.5),
    "covariance": lambda x, y, v: covariance_loss(x, v),
    "barlow": barlow,
    "barlow, other weight": partial(barlow, off_diagonal_weight=0.1, eps=1e-2),
    "koleo": lambda x, y, v: koleo(x, v),
    "sigreg": lambda x, y, v: sigreg(x, v, num_slices=32, generator=seeded()),
    "sigreg, other points": lambda x, y, v: sigreg(
        x, v, num_slices=8, num_points=9, t_max=2.0, generator=seeded()
    ),
    "invariance": _pair(invariance_loss),
    "invariance, one global view": _pair(partial(invariance_loss, num_global_views=1)),
    "lejepa": _pair(lambda x, v: lejepa_loss(x, v, num_slices=16, generator=seeded())),
    "lejepa, additive": _pair(
        lambda x, v: lejepa_loss(
            x,
            v,
            weight=0.3,
            mode="additive",
            num_global_views=1,
            num_slices=16,
            generator=seeded(),
        )
    ),
    "info_nce": info_nce,
    "info_nce, symmetric": partial(info_nce, symmetric=True, temperature=0.5),
    "info_nce, further negatives": partial(
        info_nce, negatives=noise(5, 6, key=31), temperature=torch.tensor(0.2)
    ),
    "info_nce, false negatives": partial(
        info_nce, false_negatives=noise(21, 21, key=32) > 1, symmetric=True
    ),
    "relational": lambda x, y, v: relational_loss(x, y[..., :4], v),
    "everything valid": _unmasked,
}
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **{
        f"{name}, {reduction}": partial(loss, reduction=reduction)
        for name, loss in MASKED.items()
        for reduction in REDUCTIONS
    },
    **BATCH,
}


def differentiated(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Outputs:
    x, y = (noise(3, 7, 6, key=key).requires_grad_() for key in (21, 22))
    value = loss(x, y, valid_rows(3, 7, key=23))
    (value * noise(*value.shape, key=24)).sum().backward()
    grads = {"gradient": x.grad, "gradient of the second": y.grad}
    return {"value": value} | {name: grad for name, grad in grads.items() if grad is not None}


def hierarchical() -> Outputs:
    shapes = [(2, 9, 4), (2, 3, 5, 4), (2, 2, 4)]
    preds = [noise(*shape, key=n).requires_grad_() for n, shape in enumerate(shapes)]
    targets = [noise(*shape, key=10 + n) for n, shape in enumerate(shapes)]
    valids = [valid_rows(*shape[:-1], key=20 + n) for n, shape in enumerate(shapes)]
    found = {}
    for name, weights, loss in (
        ("equal", None, masked_smooth_l1),
        ("decay", decay_weights(3, 0.3, heaviest="coarse"), masked_mse),
        ("soft optimal", SoftOptimalWeights(2.0), masked_l1),
    ):
        total, parts = hierarchical_loss(preds, targets, valids, weights=weights, loss=loss)
        grads = torch.autograd.grad(total, preds)
        found[name] = torch.stack([total, *parts.values()])
        found[f"{name}, gradient"] = torch.cat([grad.flatten() for grad in grads])
    return found


def weights_of_losses() -> Outputs:
    losses = torch.tensor([0.5, 2.0, 0.0, 0.1], dtype=torch.float64, requires_grad=True)
    uncertain = filled(UncertaintyWeights(4, max_weight=5.0))
    total = uncertain(losses)
    total.backward()
    temperature = LearnableTemperature(0.02, 0.5, initial=0.1)
    summed, terms = LossSum({"a": 2.0, "b": linear(0.0, 1.0, steps=4), "c": 0.0})(
        {"a": losses[0], "b": losses[1], "c": losses[2]}, step=3
    )
    return {
        "uncertainty": torch.stack([total, *uncertain.weights]),
        "uncertainty, gradients": torch.cat([losses.grad, uncertain.raw.grad]),
        "soft optimal": torch.stack([*SoftOptimalWeights(0.5).weights(losses)]),
        "decay": torch.tensor(decay_weights(4)),
        "temperature": torch.stack([temperature(), temperature.theta]),
        "sum": torch.stack([summed, *terms.values()]),
    }


def queue() -> Outputs:
    held = FeatureQueue(7, 3)
    found = {}
    for step in range(3):
        held.push(noise(4, 3, key=step).float())
        found[f"after {step + 1}"] = held.negatives
    return found


def targets() -> Outputs:
    features = 3 * noise(2, 5, 8, key=1) + 1
    kinds = ("layer", "l2", "none")
    return {kind: normalize_targets(features, kind) for kind in kinds}


# Tokens


def tokens() -> Outputs:
    some, blocks = ragged((3, 5), 2, key=1), ragged((3, 5), 2, 3, key=2)
    full = TokenSet.full((3, 5), (2,))
    field = noise(2, 15, 4, key=3).requires_grad_()
    taken, of_blocks = take_tokens(field, some), take_tokens(field, blocks)
    put = put_tokens(of_blocks * 2, blocks)
    mean = mean_tokens(of_blocks + 1, blocks)
    total = taken.sum() + (put * noise(*put.shape, key=4)).sum() + mean.square().sum()
    total.backward()
    return {
        "taken": taken,
        "taken of blocks": of_blocks,
        "put": put,
        "mean": mean,
        "mean of a set": mean_tokens(taken + 1, some),
        "everything taken": take_tokens(field, full),
        "gradient": field.grad,
        "coverage": blocks.coverage(),
    }


def sets() -> Outputs:
    some = ragged((5, 6), 3, key=1)
    ways = {"itself": some, "complement": some.complement(), "coarse": some.coarsen(2)}
    ways |= {"a part": some[1:], "full": TokenSet.full((2, 3), (2,))}
    found = {}
    for name, one in ways.items():
        found |= {
            f"{name}, idx": one.idx,
            f"{name}, valid": one.valid,
            f"{name}, mask": one.to_mask(),
        }
    return found


# Diagnostics

NUMBERS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "effective rank": lambda x, y, v: effective_rank(x, v),
    "rankme": lambda x, y, v: rankme(x, v),
    "alpha": lambda x, y, v: alpha_req(x, v),
    "alpha, part": lambda x, y, v: alpha_req(x, v, first=2, last=6),
    "isotropy": lambda x, y, v: isotropy(x, v),
    "spread": lambda x, y, v: feature_std(x, v),
    "drift of norms": lambda x, y, v: norm_drift(x, y, v, v),
    "uniformity": lambda x, y, v: uniformity(x, v),
    "uniformity, t 0.5": lambda x, y, v: uniformity(x, v, t=0.5),
    "alignment": alignment,
    "alignment, exponent 1": partial(alignment, exponent=1.0),
    "explained variance": explained_variance,
    "cosine": teacher_student_cosine,
    "cosine, centred": partial(teacher_student_cosine, centred=True),
    "loss of the mean": lambda x, y, v: mean_predictor_loss(x, v),
    "loss of the mean, absolute": lambda x, y, v: mean_predictor_loss(x, v, loss=masked_l1),
}


def _features(key: int, *batch: int) -> Tensor:
    """Of a falling spectrum and with a mean."""
    return noise(*batch, 8, key=key) * torch.arange(1.0, 9.0).double() ** -1 + 0.3


def numbers() -> Outputs:
    x = _features(1, 3, 9)
    y, valid = x + 0.5 * _features(2, 3, 9), valid_rows(3, 9, key=3)
    found = {}
    for name, number in NUMBERS.items():
        found |= {name: number(x, y, None), f"{name}, masked": number(x, y, valid)}
    objects = noise(6, 1, 8, key=4) + 0.3 * noise(6, 5, 8, key=5)
    return found | {"lidar": lidar(objects), "lidar, ridge 1": lidar(objects, ridge=1.0)}


def collapsed() -> Outputs:
    """The numbers where there is no variance at all, or one direction."""
    flat, line = torch.ones(9, 8).double(), noise(9, 1, key=1) * noise(8, key=2)
    one_sided = ("effective rank", "rankme", "alpha", "isotropy", "spread", "uniformity")
    return {
        f"{name}, {kind}": NUMBERS[name](x, x, None)
        for name in one_sided
        for kind, x in (("flat", flat), ("line", line))
    }


def streamed() -> Outputs:
    statistics, views = FeatureStatistics(8), LidarStatistics(8, ridge=1e-3)
    for step in range(3):
        statistics.update(_features(step, 3, 9), valid_rows(3, 9, key=step))
        views.update(noise(4, 1, 8, key=step) + 0.3 * noise(4, 5, 8, key=10 + step))
    report = statistics.compute()
    names = ("num_rows", "effective_rank", "rankme", "alpha", "isotropy", "uniformity", "norm")
    return {
        "numbers": torch.tensor([getattr(report, name) for name in names]).double(),
        "std": report.std,
        "mean": report.mean,
        "lidar": torch.tensor(views.compute(), dtype=torch.float64),
    }


def _watched(shrink: Callable[[int, Tensor], Tensor]) -> tuple[CollapseMonitor, list[Any]]:
    monitor = CollapseMonitor(action="record", patience=3)
    found = [
        monitor.update(shrink(step, _features(step, 4, 8)), valid_rows(4, 8, key=step))
        for step in range(40)
    ]
    return monitor, [collapse for collapse in found if collapse is not None]


WATCHED: dict[str, Callable[[int, Tensor], Tensor]] = {
    "healthy": lambda step, x: x,
    "to a point": lambda step, x: x * (1e-4 if step > 25 else 1),
    "to a line": lambda step, x: x[..., :1] * noise(8, key=77) if step > 25 else x,
    "dead dimensions": lambda step, x: x * (torch.arange(8) < (3 if step > 20 else 8)),
    "slowly": lambda step, x: x * 0.93**step,
    "not finite": lambda step, x: x / (0 if step >= 30 else 1),
}


def watched() -> Outputs:
    found = {}
    for name, shrink in WATCHED.items():
        monitor, _ = _watched(shrink)
        found[name] = torch.tensor([list(seen) for seen in monitor.history]).double()
        if monitor.reference is not None:
            found[f"{name}, reference"] = torch.tensor(list(monitor.reference)).double()
    return found


# Data, evaluation, schedules


def crops() -> Outputs:
    images = noise(3, 2, 9, 12, key=1)
    return {
        "crops": random_crops(images, (0.3, 0.8), generator=seeded()),
        "mirrored": random_crops(images, (0.5, 1.0), flip=True, generator=seeded()),
        "in float32": random_crops(images.float(), (1.0, 1.0), flip=True, generator=seeded()),
    }


def textures() -> Outputs:
    found = {}
    for part, dataset in zip(("train", "test"), textured_shapes(50, 20), strict=True):
        images, labels = dataset.tensors
        found |= {f"{part}, images": images, f"{part}, labels": labels}
    return found


def pixels() -> Outputs:
    images = (noise(12, 2, 5, 4, key=1) * 60 + 128).byte()
    statistics = PixelStatistics.from_dataset(TensorDataset(images, torch.arange(12)), num_images=8)
    return {
        "mean, std": torch.tensor([*statistics.mean, *statistics.std]),
        "images": statistics(images[:3]),
    }


def schedules() -> Outputs:
    ways = {
        "constant": constant(0.3),
        "linear": linear(0.996, 1.0, steps=10),
        "cosine": cosine(1.0, 0.1, steps=10),
        "warm-up": warmup_cosine(1e-3, 1e-5, warmup_steps=3, steps=12),
        "warm-up from above 0": warmup_cosine(1.0, warmup_steps=4, steps=9, start=0.2),
    }
    steps = (0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 50)
    return {
        name: torch.tensor([way(step) for step in steps], dtype=torch.float64)
        for name, way in ways.items()
    }


def audited() -> Outputs:
    found = {}
    samplers = (
        MultiBlockMask((8, 9), context_length="trim", context_subset="random"),
        ReferenceMultiBlockMask((10, 10)),
    )
    for name, sampler in zip(("multi-block", "published"), samplers, strict=True):
        report = audit_masks(sampler, num_batches=5, batch_size=8, generator=seeded())
        fields = (
            report.undersized_context_ratio,
            report.leak_ratio,
            report.mean_trimmed_tokens,
            report.min_context_tokens,
        )
        shares = (
            report.empty_target_ratio,
            report.duplicate_target_ratio,
            report.partial_target_ratio,
        )
        found |= {
            f"{name}, contexts": report.context_frequency,
            f"{name}, targets": report.target_frequency,
            f"{name}, numbers": torch.tensor([*report.context_coverage, *fields, *shares]),
            f"{name}, sizes": torch.tensor([[*k, n] for k, n in report.target_sizes.items()]),
        }
    return found


# Facts


def types_of_losses() -> dict[str, list[str]]:
    """Of the value and of the gradient, for inputs of each type."""
    found = {}
    for name, loss in (MASKED | BATCH).items():
        found[name] = []
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            x, y = (noise(3, 7, 6, key=key).to(dtype).requires_grad_() for key in (21, 22))
            value = loss(x, y, valid_rows(3, 7, key=23))
            value.backward()
            found[name].append(f"{value.dtype}, {x.grad.dtype}".replace("torch.", ""))
    return found


def monitor_says() -> dict[str, list[str]]:
    return {
        name: [
            f"{found.kind}, {found.sign}: at {found.step}, since {found.first_step}"
            for found in _watched(way)[1]
        ]
        for name, way in WATCHED.items()
    }


def groups() -> list[dict[str, Any]]:
    """Names in the groups of parameters of a whole system, without those of timm's blocks."""
    backbone = timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=42, depth=1, embed_dim=32, num_heads=2
    )
    shape = {"predictor_embed_dim": 24, "depth": 1, "num_heads": 2, "num_levels": 2}
    model = nn.ModuleDict(
        {
            "encoder": MaskedViT(backbone),
            "pyramid": HierarchicalPyramid((3, 3), 32, pool="conv", fusion="fpn-add", num_levels=2),
            "other pyramid": HierarchicalPyramid((3, 3), 32, pool="attention", norm="layer"),
            "predictor": MaskedPredictor((3, 3), 32, position="learned", **shape),
            "temperature": LearnableTemperature(),
            "weights": UncertaintyWeights(2),
        }
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = param_groups(model, 0.05, decay=["pyramid.*"], no_decay=["predictor.embed.*"])
    return [
        {
            "weight_decay": group["weight_decay"],
            "names": [names[id(parameter)] for parameter in group["params"]],
        }
        for group in found
    ]


def batches() -> dict[str, Any]:
    whole = list(ResumableBatches(10, 3, steps=8, seed=4))
    resumed = list(ResumableBatches(10, 3, steps=8, seed=4, first_step=5))
    return {
        "order": [[int(index) for index in batch] for batch in whole],
        "epochs": [batch[0].epoch for batch in whole],
        "resumed": [[int(index) for index in batch] for batch in resumed],
    }


def _labelled(key: int, count: int) -> tuple[Tensor, Tensor]:
    """Noisy features of three classes."""
    labels = torch.arange(count) % 3
    return (noise(3, 6, key=1)[labels] + 1.7 * noise(count, 6, key=key)).float(), labels


TRAIN, TEST = _labelled(2, 90), _labelled(3, 60)


def extracted() -> Outputs:
    loader = list(zip(*(part.split(20) for part in TRAIN), strict=True))
    found = extract_features(lambda x: x[:, :4] * 2, loader, prepare=lambda x: x + 1)
    return {"features": found.x, "labels": found.y}


def scores() -> dict[str, Any]:
    train, test = Features(*TRAIN), Features(*TEST)
    sets = [TensorDataset(x.view(-1, 2, 3), y) for x, y in (TRAIN, TEST)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = evaluate(lambda x: x.flatten(1), *sets, k=5)
    attentive = attentive_probe(lambda x: x, *sets, num_heads=1, epochs=15, lr=(1e-3, 3e-2))
    return {
        "neighbours": [knn_accuracy(train, test, k=k) for k in (1, 5, 20)],
        "neighbours, cold": knn_accuracy(train, test, k=20, temperature=0.01),
        "linear": linear_probe(train, test),
        "linear, of several": linear_probe(train, test, C=(0.01, 1.0)),
        "evaluate": [round(number, 4) for number in whole],
        "attentive": attentive,
    }


FUNCTIONS: dict[str, Callable[[], Outputs]] = {
    **{f"loss, {name}": partial(differentiated, loss) for name, loss in LOSSES.items()},
    "hierarchical loss": hierarchical,
    "weights of losses": weights_of_losses,
    "queue": queue,
    "normalised targets": targets,
    "tokens": tokens,
    "sets": sets,
    "diagnostics": numbers,
    "diagnostics of collapsed features": collapsed,
    "diagnostics, streamed": streamed,
    "collapse monitor": watched,
    "crops": crops,
    "textures": textures,
    "pixels": pixels,
    "schedules": schedules,
    "audit": audited,
    "extracted features": extracted,
}
FACTS: dict[str, Callable[[], Any]] = {
    "types of losses": types_of_losses,
    "what the monitor says": monitor_says,
    "groups of parameters": groups,
    "batches": batches,
    "scores": scores,
}
