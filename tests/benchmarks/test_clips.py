"""benchmarks/clip_step.py and clip_memory.py count what they say."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepakit.masking import vjepa_masks


@pytest.mark.no_hook
def test_bytes_of_checkpointed_blocks_are_those_of_their_inputs(script) -> None:
    """Trap: hooks of checkpointing hide what is kept, and the count is far too low."""
    module = script("clip_memory")
    size = script("clip_step").Size(64, 3, 32, 2, 2)
    whole, less = (
        module.kept_bytes(8, checkpointing=checkpointing, size=size)
        for checkpointing in (False, True)
    )
    grid = (4, 14, 14)
    inputs, pixels = 0, 0
    for masks in vjepa_masks(grid)(1, generator=torch.Generator().manual_seed(0)):
        context, targets = masks.context.shape[-1], masks.targets.shape[-1]
        inputs += 4 * (3 * context * 64 + 2 * (context + targets) * 32)
        pixels += 4 * context * 3 * 2 * 16 * 16
    assert inputs + pixels < less < 2 * (inputs + pixels)
    # Two norms, q, k, v, heads, the MLP's hidden layer before and after: 16 and more a block.
    assert whole > 10 * inputs


@pytest.mark.no_hook
def test_multiply_adds_grow_with_the_depths_as_torch_counts(script) -> None:
    """One more block of the encoder or of the predictor, exactly.

    The whole is an upper bound: the predictor's last block computes its output at targets alone.
    """
    module = script("clip_step")
    sets = module.draw("fixed", 1, 0)
    clips = torch.randn(1, 3, 16, 224, 224)

    def both(encoder_depth: int, predictor_depth: int) -> tuple[float, float]:
        size = module.Size(64, encoder_depth, 32, predictor_depth, 2)
        step = module.Step(size)
        unfused = sdpa_kernel(SDPBackend.MATH)  # the counter does not know every fused kernel
        with unfused, FlopCounterMode(display=False) as counter:
            step.loss(clips, sets).backward()
        return module.multiply_adds(sets, size), counter.get_total_flops() / 2

    formula, counted = both(1, 1)
    assert counted < formula < 1.2 * counted
    for depths in ((2, 1), (1, 2)):
        more_by_formula, more_counted = both(*depths)
        grown = more_by_formula - formula, more_counted - counted
        assert math.isclose(*grown, rel_tol=1e-6), depths
