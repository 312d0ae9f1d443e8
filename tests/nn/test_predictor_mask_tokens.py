"""One predictor serves several kinds of masks, with a mask token for each."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from jepakit import MaskedPredictor, TokenSet, masked_l1, take_tokens
from jepakit.masking import vjepa_masks

GRID = (2, 8, 8)


def build(num_mask_tokens: int = 3) -> MaskedPredictor:
    torch.manual_seed(0)
    return MaskedPredictor(
        GRID, 12, predictor_embed_dim=12, depth=1, num_heads=1, num_mask_tokens=num_mask_tokens
    )


def inputs() -> tuple[torch.Tensor, TokenSet, TokenSet]:
    masks = vjepa_masks(GRID)(2, generator=torch.Generator().manual_seed(0))[0]
    features = torch.randn(*masks.context.shape, 12, generator=torch.Generator().manual_seed(1))
    return features, masks.context, masks.targets


def test_each_set_trains_its_own_mask_token() -> None:
    """Trap: one token for all sets, or the first one whatever the call asks for."""
    predictor = build(2)
    features = torch.randn(2, 128, 12)
    sets = vjepa_masks(GRID)(2, generator=torch.Generator().manual_seed(0))
    for number, masks in enumerate(sets):
        predictor.zero_grad()
        context = take_tokens(features, masks.context)
        pred = predictor(context, masks.context, masks.targets, mask_token=number)
        other = predictor(context, masks.context, masks.targets, mask_token=1 - number)
        assert not torch.allclose(pred, other)
        masked_l1(pred, take_tokens(features, masks.targets), masks.targets.valid).backward()
        gradient = predictor.mask_token.grad
        assert gradient[number].any() and not gradient[1 - number].any()


@torch.no_grad()
def test_one_of_several_is_a_predictor_with_that_token_alone() -> None:
    several, alone = build(), build(1)
    state = several.state_dict()
    for number in range(3):
        alone.load_state_dict(state | {"mask_token": state["mask_token"][number : number + 1]})
        features, context, targets = inputs()
        pred = several(features, context, targets, mask_token=np.int64(number))
        assert torch.equal(pred, alone(features, context, targets))
        grid = several.predict_grid(features, context, mask_token=number)
        assert torch.equal(grid, alone.predict_grid(features, context))


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (3, ValueError, r"mask_token=3: must be below num_mask_tokens=3"),
        (-1, ValueError, r"mask_token=-1: must be at least 0"),
        (1.0, TypeError, r"mask_token=1.0: must be an int"),
        (True, TypeError, r"mask_token=True: must be an int"),
    ],
)
def test_a_token_that_there_is_not(number, error, text) -> None:
    """Trap: a number that wraps around, as an index of Python's and of the published code does."""
    features, context, targets = inputs()
    with pytest.raises(error, match=text):
        build()(features, context, targets, mask_token=number)
    with pytest.raises(error, match=text):
        build().predict_grid(features, context, mask_token=number)


@pytest.mark.no_hook
@torch.no_grad()
def test_one_graph_for_each_token_at_most() -> None:
    """Law 14."""
    predictor = build(4).eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(predictor, fullgraph=True, backend=counter)
    for number in (0, 1, 2, 3, 0, 2):
        expected = predictor(*inputs(), mask_token=number)
        torch.testing.assert_close(compiled(*inputs(), mask_token=number), expected)
    assert counter.frame_count <= 4
