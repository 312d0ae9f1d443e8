"""Distributions of the drawn masks, in which each random number has its own part."""

import pytest
import torch

from jepakit import RandomMask
from jepakit.masking import BlockMask, CausalMask, InverseBlockMask, MultiContextMask
from jepakit.masking._engine.growth import grow_blocks, max_num_blocks


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("steps", [(2, 5), (1, 1), (3, 4)])
def test_past_steps_are_uniform_over_their_range(steps):
    sampler = CausalMask((8, 2), num_context_steps=steps, context_size_per="sample")
    past = sampler(4000, generator=generator()).context.counts() // 2
    shares = torch.bincount(past, minlength=9) / 4000
    expected = torch.zeros(9)
    expected[steps[0] : steps[1] + 1] = 1 / (steps[1] - steps[0] + 1)
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", [BlockMask, InverseBlockMask])
def test_an_aspect_ratio_is_height_over_width(kind):
    """Whole blocks, away from the border."""
    role = "targets" if kind is BlockMask else "context"
    ratio = {"target_ratio" if kind is BlockMask else "context_ratio": 36 / 900}
    for aspect, height, width in (((4.0, 4.0), 12, 3), ((0.25, 0.25), 3, 12)):
        sampler = kind((30, 30), **ratio, block_scale=(1.0, 1.0), block_aspect_ratio=aspect)
        uniforms = torch.full((1, 4), 0.5)
        uniforms[:, 2] = (15 * 30 + 15.5) / 900
        field = getattr(sampler.from_uniforms(uniforms), role).to_mask().view(30, 30)
        found = int(field.any(1).sum()), int(field.any(0).sum())
        assert found == pytest.approx((height, width), abs=2)


def test_shares_reach_from_the_low_to_the_high_end():
    u = torch.rand(64, 4 * max_num_blocks((8, 8), 32, (0.1, 0.5)), generator=generator())
    aspect = (0.5, 2.0)

    def grown(scale: tuple[float, float], draws: torch.Tensor) -> torch.Tensor:
        return grow_blocks((8, 8), torch.tensor([32]), scale, aspect, draws)

    for number, scale in ((0.0, (0.1, 0.1)), (1 - 2**-24, (0.5, 0.5))):
        ends = u.clone()
        ends[:, ::4] = number
        rounds = max_num_blocks((8, 8), 32, scale)
        expected = grown(scale, ends[:, : 4 * rounds])
        assert torch.equal(grown((0.1, 0.5), ends), expected)


def test_the_last_ring_fills_up_from_any_side():
    sampler = InverseBlockMask((9, 9), context_ratio=4 / 81, block_aspect_ratio=(1.0, 1.0))
    assert sampler.num_uniforms == 4
    uniforms = torch.full((4, 4), 0.5)
    uniforms[:, 2], uniforms[:, 3] = 40.5 / 81, torch.arange(4) / 4
    fields = sampler.from_uniforms(uniforms).context.to_mask().view(4, 9, 9)
    sides = [fields[0, 3:6, 3], fields[1, 3, 3:6], fields[2, 3:6, 5], fields[3, 5, 3:6]]
    assert all(side.all() for side in sides), "left, top, right, bottom"
    assert fields[:, 4, 4].all()


def test_members_of_a_mixture_draw_independently():
    first, second = MultiContextMask((RandomMask((16,)), RandomMask((16,))))(
        64, generator=generator()
    )
    same = (first.context.idx == second.context.idx).all(dim=1)
    assert same.float().mean() < 0.1
    table = torch.rand(3, 32, generator=generator())
    apart = [RandomMask((16,)).from_uniforms(part) for part in table.split(16, dim=1)]
    together = MultiContextMask((RandomMask((16,)), RandomMask((16,)))).from_uniforms(table)
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one.context.idx, other.context.idx)
