"""The loop of the README: it runs as written, and it learns."""

import pytest
import torch

from jepakit import TokenSet, masked_mse, masked_smooth_l1, normalize_targets, take_tokens


@pytest.mark.parametrize(
    ("kind", "predictor", "recipe"),
    [
        ("vit", {}, "code"),
        ("eva", {"position": "rope", "joint": True}, "paper"),
        ("vit", {"position": "learned"}, "paper"),
    ],
)
def test_loss_falls_on_a_fixed_batch(kind, predictor, recipe, system, parameters_of) -> None:
    """With a fixed batch and fixed masks the predictor can memorise the targets."""
    parts = system(kind, **predictor)
    trained = parameters_of(parts)
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3)
    images = torch.randn(6, 3, 32, 32)
    masks = parts.sampler(len(images), generator=torch.Generator().manual_seed(0))
    loss_of, norm = (masked_smooth_l1, "layer") if recipe == "code" else (masked_mse, "none")
    frozen = parts.teacher(images)
    losses = []
    for step in range(80):
        context = parts.encoder(images, masks.context)
        target = take_tokens(normalize_targets(parts.teacher(images), norm), masks.targets)
        pred = parts.predictor(context, masks.context, masks.targets)
        loss = loss_of(pred, target, masks.targets.valid)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        parts.teacher.update(parts.encoder)
        losses.append(loss.item())
        assert parts.teacher.step == step + 1
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < 0.7 * losses[0]
    assert not torch.equal(parts.teacher(images), frozen)


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize("position", ["sincos", "rope", "learned"])
def test_the_first_step_reaches_every_parameter(kind, position, system, parameters_of) -> None:
    """Trap: an unused parameter stops DDP."""
    parts = system(kind, position=position)
    images = torch.randn(3, 3, 32, 32)
    masks = parts.sampler(3)
    pred = parts.predictor(parts.encoder(images, masks.context), masks.context, masks.targets)
    target = take_tokens(parts.teacher(images), masks.targets)
    masked_mse(pred, target, masks.targets.valid).backward()
    for name, parameter in parameters_of(parts).items():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in parts.teacher.parameters())


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize("joint", [False, True])
def test_the_loss_of_a_sample_does_not_depend_on_batch_mates(kind, joint, system) -> None:
    """Law 5 from pixels to loss, with ragged contexts and targets."""
    parts = system(kind, depth=2, joint=joint)
    images = torch.randn(5, 3, 32, 32)
    masks = parts.sampler(5)
    assert len(set(masks.context.counts().tolist())) > 1

    def losses(which) -> torch.Tensor:
        grid = parts.encoder.grid_size
        context = TokenSet.from_mask(masks.context.to_mask()[which], grid)
        targets = TokenSet.from_mask(masks.targets.to_mask()[which], grid)
        pred = parts.predictor(parts.encoder(images[which], context), context, targets)
        target = take_tokens(parts.teacher(images[which]), targets)
        return masked_mse(pred, target, targets.valid, reduction="sample")

    with torch.no_grad():
        together = losses(slice(None))
        alone = torch.cat([losses(slice(i, i + 1)) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_predictions_depend_on_the_context_alone(kind, system, monkeypatch) -> None:
    """Law 4 from pixels to prediction: hidden pixels, targets included, may be NaN."""
    monkeypatch.setattr("jepakit._checks.TYPECHECK", False)  # which refuses NaN
    parts = system(kind, depth=2)
    images = torch.randn(4, 3, 32, 32)
    masks = parts.sampler(4)
    visible = masks.context.to_mask().view(4, 1, 8, 8)
    pixels = visible.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    broken = images.masked_fill(~pixels, torch.nan)
    with torch.no_grad():
        expected, pred = (
            parts.predictor(parts.encoder(x, masks.context), masks.context, masks.targets)
            for x in (images, broken)
        )
    assert torch.equal(pred, expected)


def test_resumed_is_uninterrupted(system, parameters_of, tmp_path) -> None:
    """Everything that a loop must save is in the parts' state dicts and the generator's state."""

    def new():
        parts = system(depth=2, drop_path=0.0)
        optimizer = torch.optim.AdamW(parameters_of(parts).values(), lr=1e-3)
        return parts, optimizer, torch.Generator().manual_seed(3)

    def train(parts, optimizer, generator, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            images = torch.randn(3, 3, 32, 32, generator=generator)
            masks = parts.sampler(3, generator=generator)
            pred = parts.predictor(
                parts.encoder(images, masks.context), masks.context, masks.targets
            )
            target = take_tokens(normalize_targets(parts.teacher(images)), masks.targets)
            loss = masked_smooth_l1(pred, target, masks.targets.valid)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            parts.teacher.update(parts.encoder)
            losses.append(loss.item())
        return losses

    whole = train(*new(), 6)
    parts, optimizer, generator = new()
    assert train(parts, optimizer, generator, 3) == whole[:3]
    names = ("encoder", "predictor", "teacher")
    saved = {name: getattr(parts, name).state_dict() for name in names}
    saved |= {"optimizer": optimizer.state_dict(), "generator": generator.get_state()}
    torch.save(saved, tmp_path / "run.pt")

    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    parts, optimizer, generator = new()
    for name in names:
        getattr(parts, name).load_state_dict(saved[name])
    optimizer.load_state_dict(saved["optimizer"])
    generator.set_state(saved["generator"])
    assert train(parts, optimizer, generator, 3) == whole[3:]
