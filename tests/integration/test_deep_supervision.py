"""Targets from several layers of the teacher: each normalised on its own, one loss."""

import timm
import torch
from torch import Tensor, nn

from jepakit import (
    EMATeacher,
    MaskedPredictor,
    MaskedViT,
    MultiBlockMask,
    TokenSet,
    hierarchical_loss,
    masked_l1,
    normalize_targets,
    take_tokens,
)

LAYERS, DIM = [0, 1, 2], 24


class Student(nn.Module):
    """Features of several layers, as a user would write it."""

    def __init__(self) -> None:
        super().__init__()
        backbone = timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=0,
            img_size=32,
            patch_size=4,
            depth=3,
            embed_dim=DIM,
            num_heads=2,
        )
        self.encoder = MaskedViT(backbone)

    def forward(self, images: Tensor, context: TokenSet | None = None) -> list[Tensor]:
        return self.encoder.forward_intermediates(images, LAYERS, context, norm=True)


def system():
    torch.manual_seed(0)
    student = Student()
    teacher = EMATeacher(student, momentum=0.99)
    grid, width = student.encoder.grid_size, len(LAYERS) * DIM
    predictor = MaskedPredictor(grid, width, predictor_embed_dim=24, depth=1, num_heads=2)
    sampler = MultiBlockMask(grid, num_targets=2, target_size_per="sample", context_length="pad")
    masks = sampler(4, generator=torch.Generator().manual_seed(0))
    assert masks.context.padded and masks.targets.padded
    return student, teacher, predictor, masks, torch.randn(4, 3, 32, 32)


def losses(student, goals, predictor, masks, images) -> tuple[Tensor, dict[str, Tensor]]:
    context = torch.cat(student(images, masks.context), dim=-1)
    preds = predictor(context, masks.context, masks.targets).chunk(len(LAYERS), dim=-1)
    targets = [take_tokens(normalize_targets(goal), masks.targets) for goal in goals]
    valids = [masks.targets.valid] * len(LAYERS)
    return hierarchical_loss(preds, targets, valids, loss=masked_l1)


def test_equals_a_loop() -> None:
    """Over layers, samples, blocks and tokens; value, parts, and the student's gradient."""
    student, teacher, predictor, masks, images = system()
    goals = teacher(images)
    total, parts = losses(student, goals, predictor, masks, images)
    total.backward()
    ours = [parameter.grad.clone() for parameter in student.parameters()]
    student.zero_grad()

    layers = student(images, masks.context)
    out = predictor(torch.cat(layers, dim=-1), masks.context, masks.targets)
    expected = torch.zeros(())
    for number in range(len(LAYERS)):
        errors = []
        for b, m, k in masks.targets.valid.nonzero().tolist():
            target = goals[number][b, masks.targets.idx[b, m, k]]
            target = (target - target.mean()) / (target.var(correction=0) + 1e-5).sqrt()
            errors.append((out[b, m, k, number * DIM : (number + 1) * DIM] - target).abs().mean())
        mean = torch.stack(errors).mean()
        torch.testing.assert_close(parts[f"level_{number}"], mean, rtol=1e-5, atol=1e-6)
        expected = expected + mean / len(LAYERS)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    for mine, parameter in zip(ours, student.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-6)


def test_each_layer_is_normalised_on_its_own() -> None:
    """Trap: one norm over concatenated layers, in which the largest dominates."""
    student, teacher, predictor, masks, images = system()
    goals = teacher(images)
    scaled = [goal * scale for goal, scale in zip(goals, (100.0, 1.0, 10.0), strict=True)]
    _, before = losses(student, goals, predictor, masks, images)
    _, after = losses(student, scaled, predictor, masks, images)
    for name, part in before.items():
        torch.testing.assert_close(after[name], part, rtol=1e-3, atol=1e-4)


def test_it_trains() -> None:
    """Every layer's loss falls; every parameter, the final norm included, gets a gradient; the
    teacher gives the same layers at first, without one."""
    student, teacher, predictor, masks, images = system()
    for layer, goal in zip(student.eval()(images), teacher(images), strict=True):
        assert torch.equal(layer, goal) and not goal.requires_grad
    student.train()
    modules = nn.ModuleList([student, predictor])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=5e-3)
    history = []
    for _ in range(30):
        total, parts = losses(student, teacher(images), predictor, masks, images)
        total.backward()
        for name, parameter in modules.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student)
        history.append(torch.stack(list(parts.values())).detach())
    assert (history[-1] < 0.95 * history[0]).all()
