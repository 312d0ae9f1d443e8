"""The plain implementation computes what jepakit computes, with the published masks.

Trap: a comparison of speed with something that does less, or something else.
"""

import itertools
from collections import Counter

import pytest
import torch

import jepakit
from jepakit.masking import ReferenceMultiBlockMask
from jepakit.nn.positions import sincos_table

GRID = (14, 14)


def copy_weights(step, plain) -> None:
    """Give the plain modules the weights of jepakit's."""
    backbone = step.encoder.backbone.state_dict()
    own = {name: value for name, value in backbone.items() if not name.startswith("patch_drop")}
    plain.encoder.load_state_dict(own)
    plain.teacher.load_state_dict(
        {name.removeprefix("backbone."): v for name, v in step.teacher.module.state_dict().items()}
    )
    predictor = step.predictor.state_dict()
    predictor["mask_token"] = predictor["mask_token"][None]
    predictor["pos_embed"] = sincos_table(step.grid_size, 32)[None]
    plain.predictor.load_state_dict(predictor)


def test_loss_gradients_and_teacher_are_those_of_jepakit(script) -> None:
    module = script("step")
    model = module.MODELS["tiny"]
    step = module.Step(model, module.Way(""), "cpu")
    plain = module.Step(model, module.Way("", published=True), "cpu")
    with torch.no_grad():  # away from zero biases, norms without effect, a teacher like the student
        for parameter in itertools.chain(*(part.parameters() for part in step.modules)):
            parameter.add_(0.1 * torch.randn_like(parameter))
    copy_weights(step, plain)
    images = torch.randn(3, 3, 32, 32)
    masks = jepakit.MultiBlockMask((8, 8), num_targets=3, context_length=16)(3)
    losses = [each.loss(images, masks) for each in (step, plain)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    weights = [each.encoder.get_parameter(name) for each, name in (
        (step, "backbone.blocks.0.attn.qkv.weight"), (plain, "blocks.0.attn.qkv.weight")
    )]  # fmt: skip
    assert weights[0].grad.abs().max() > 0
    torch.testing.assert_close(weights[0].grad, weights[1].grad)
    torch.testing.assert_close(step.predictor.mask_token.grad, plain.predictor.mask_token.grad[0])
    for each in (step, plain):
        each.update_teacher()
    torch.testing.assert_close(
        step.teacher.module.backbone.norm.weight, plain.teacher.norm.weight, rtol=0, atol=1e-6
    )
    assert not plain.teacher.norm.weight.equal(plain.encoder.norm.weight)


def test_positions_are_the_same_numbers(script) -> None:
    """The published table has the column's numbers first, jepakit's those of the row."""
    table = script("published").sines_and_cosines((3, 5), 32)
    ours = sincos_table((3, 5), 32)
    torch.testing.assert_close(table, torch.cat([ours[:, 16:], ours[:, :16]], dim=1))


def test_the_image_collator_has_the_published_distribution(script) -> None:
    """Sizes and lengths are those of the sampler with all quirks, which was audited."""
    published, reference = script("published"), ReferenceMultiBlockMask(GRID)
    targets: Counter[int] = Counter()
    lengths = []
    for _ in range(60):
        context, blocks = published.image_masks(GRID, 8)
        assert len(blocks) == 4 and all(block.shape == blocks[0].shape for block in blocks)
        every = torch.cat([context.flatten(), *(block.flatten() for block in blocks)])
        assert every.max() // 14 < 13 and (every % 14).max() < 13  # never the last row and column
        hidden = torch.zeros(8, 196, dtype=torch.bool).scatter(1, torch.cat(blocks, dim=1), True)
        assert not hidden.gather(1, context).any()
        assert (context.diff(dim=1) > 0).all()
        targets[blocks[0].shape[1]] += 1
        lengths.append(context.shape[1])
    drawn = [reference(8) for _ in range(200)]
    assert set(targets) <= {masks.targets.shape[-1] for masks in drawn}
    mean = sum(masks.context.shape[-1] for masks in drawn) / len(drawn)
    assert sum(lengths) / len(lengths) == pytest.approx(mean, abs=6)  # 4 standard errors


@pytest.mark.parametrize(("num_blocks", "scale"), [(8, 0.15), (2, 0.7)])
def test_the_clip_collator_cuts_a_context_and_its_complement(script, num_blocks, scale) -> None:
    grid = (2, 14, 14)
    context, target = script("published").clip_masks(grid, 6, num_blocks=num_blocks, scale=scale)
    for visible, hidden in zip(context, target, strict=True):
        assert not set(visible.tolist()) & set(hidden.tolist())
        frames = [{i % 196 for i in visible.tolist() if i // 196 == t} for t in range(2)]
        assert frames[1] <= frames[0]  # blocks last the whole clip, and the cut keeps a prefix
    assert context.shape[1] + target.shape[1] <= 392
    assert target.shape[1] >= int(0.9 * scale * 196) * 2
