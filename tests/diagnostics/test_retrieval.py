"""`target_retrieval`: a prediction finds its image by content, not by position or collapse."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepakit import TokenSet, take_tokens
from jepakit.diagnostics import target_retrieval

GRID = (3, 4)


def random_targets(random: torch.Generator, batch_size: int, num_targets: int) -> TokenSet:
    """Ragged target sets, none empty."""
    mask = torch.rand(batch_size, num_targets, 12, generator=random) < 0.4
    mask[..., 5] |= ~mask.any(dim=-1)
    return TokenSet.from_mask(mask, GRID)


def a_case(seed: int, batch_size: int, num_targets: int) -> tuple[Tensor, TokenSet]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(batch_size, 12, 6, generator=random)
    # What all images share at a position is far larger than what differs.
    features += 20 * torch.randn(12, 6, generator=random)
    return features, random_targets(random, batch_size, num_targets)


CASES: dict[str, Any] = {
    "seed": st.integers(0, 2**31),
    "batch_size": st.integers(2, 7),
    "num_targets": st.integers(1, 3),
}


def naive_hits(pred: Tensor, features: Tensor, targets: TokenSet) -> list[list[float]]:
    centred = features.double() - features.double().mean(dim=0)
    mean = features.double().mean(dim=0)
    found = []
    for image in range(len(features)):
        found.append([])
        for block in range(targets.shape[1]):
            keep = targets.valid[image, block]
            positions = targets.idx[image, block][keep]
            query = (pred[image, block][keep].double() - mean[positions]).flatten()
            scores = [
                float(torch.cosine_similarity(query, other[positions].flatten(), dim=0))
                for other in centred
            ]
            found[-1].append(float(max(range(len(scores)), key=scores.__getitem__) == image))
    return found


@given(**CASES)
def test_equals_a_loop_over_blocks_and_images(seed: int, batch_size: int, num_targets: int) -> None:
    features, targets = a_case(seed, batch_size, num_targets)
    random = torch.Generator().manual_seed(seed)
    pred = take_tokens(features, targets)
    pred = pred + 2 * torch.randn(pred.shape, generator=random)
    found = target_retrieval(pred, features, targets)
    assert found.hits.tolist() == naive_hits(pred, features, targets)
    assert float(found.accuracy) == pytest.approx(float(found.hits.mean()))
    assert float(found.chance) == pytest.approx(1 / batch_size)


@given(**CASES, length=st.floats(0.01, 10))
def test_a_perfect_prediction_finds_every_image(
    seed: int, batch_size: int, num_targets: int, length: float
) -> None:
    """Also if it is closer to the mean than the features are, as predictions are.

    Trap: by distance a short prediction finds whichever image is closest to the mean.
    """
    features, targets = a_case(seed, batch_size, num_targets)
    mean = features.mean(dim=0)
    pred = take_tokens(mean + length * (features - mean), targets)
    found = target_retrieval(pred, features, targets, k=batch_size)
    assert float(found.accuracy) == 1
    own = torch.arange(batch_size).view(-1, 1).expand(-1, num_targets)
    assert torch.equal(found.nearest[..., 0], own)
    assert torch.equal(found.nearest.sort(dim=-1).values[0, 0], torch.arange(batch_size))


@settings(max_examples=30)
@given(**CASES, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_collapse_is_chance(
    seed: int, batch_size: int, num_targets: int, dtype: torch.dtype
) -> None:
    """Traps: own images win ties, so that collapse is perfect; the rounding of equals decides."""
    features, targets = a_case(seed, batch_size, num_targets)
    features = features.to(dtype)
    by_position = features[:1].expand(batch_size, -1, -1)
    for pred, teacher in (
        (take_tokens(by_position, targets), by_position),  # nothing but position on both sides
        (take_tokens(features, targets), by_position),  # a collapsed teacher
        (take_tokens(features.double().mean(0).expand(batch_size, -1, -1), targets), features),
        (take_tokens(features.mean(0).expand(batch_size, -1, -1), targets), features),
    ):
        found = target_retrieval(pred, teacher, targets)
        assert float(found.accuracy) == pytest.approx(1 / batch_size)
        assert torch.allclose(found.hits, found.chance.expand_as(found.hits))


@given(seed=st.integers(0, 2**31), batch_size=st.integers(2, 7))
def test_one_prediction_for_all_images_is_chance(seed: int, batch_size: int) -> None:
    """Exactly where all images hide the same positions: one of them is the most similar to it."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(batch_size, 12, 6, generator=random)
    targets = random_targets(random, 1, 1)
    targets = TokenSet.cat([targets] * batch_size)
    pred = torch.randn(1, 1, targets.shape[-1], 6, generator=random).expand(batch_size, -1, -1, -1)
    assert float(target_retrieval(pred, features, targets).accuracy) == pytest.approx(
        1 / batch_size
    )


@given(**CASES)
def test_padding_does_not_count(seed: int, batch_size: int, num_targets: int) -> None:
    """Law 6: neither padded entries of blocks, nor blocks without any, nor a NaN in them."""
    features, targets = a_case(seed, batch_size, num_targets)
    random = torch.Generator().manual_seed(seed)
    pred = take_tokens(features, targets)
    pred = pred + torch.randn(pred.shape, generator=random)
    expected = target_retrieval(pred, features, targets)
    mask = torch.cat([targets.to_mask(), torch.zeros(batch_size, 1, 12, dtype=torch.bool)], dim=1)
    mask = torch.cat([mask, torch.ones(1, num_targets + 1, 12, dtype=torch.bool)])
    padded = TokenSet.from_mask(mask, GRID)[:batch_size]
    more = torch.full((*padded.shape, 6), torch.nan)
    more[:, :-1, : pred.shape[2]] = torch.where(targets.valid.unsqueeze(-1), pred, torch.nan)
    found = target_retrieval(more, features, padded)
    assert torch.equal(found.hits[:, :-1], expected.hits)
    assert found.hits[:, -1].isnan().all() and (found.nearest[:, -1] == -1).all()
    assert torch.equal(found.nearest[:, :-1], expected.nearest)
    torch.testing.assert_close(found.accuracy, expected.accuracy)
    torch.testing.assert_close(found.chance, expected.chance)


@given(**CASES)
def test_permuted_images_give_permuted_results(
    seed: int, batch_size: int, num_targets: int
) -> None:
    features, targets = a_case(seed, batch_size, num_targets)
    random = torch.Generator().manual_seed(seed)
    pred = take_tokens(features, targets)
    pred = pred + 2 * torch.randn(pred.shape, generator=random)
    order = torch.randperm(batch_size, generator=random)
    once = target_retrieval(pred, features, targets, k=2)
    again = target_retrieval(pred[order], features[order], targets[order], k=2)
    torch.testing.assert_close(again.hits, once.hits[order])
    assert torch.equal(order[again.nearest], once.nearest[order])


def test_images_without_data_at_the_block_are_no_candidates() -> None:
    """Trap: zeros at an image's padding, which a prediction near the mean would find."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(4, 12, 6, generator=random)
    valid = torch.ones(4, 12, dtype=torch.bool)
    valid[2:, 8:] = False  # two images are shorter
    mask = torch.zeros(4, 1, 12, dtype=torch.bool)
    mask[:2, :, 7:10] = True
    mask[2:, :, :2] = True
    targets = TokenSet.from_mask(mask, GRID)
    poisoned = torch.where(valid.unsqueeze(-1), features, torch.nan)
    found = target_retrieval(take_tokens(features, targets), poisoned, targets, valid, k=4)
    assert float(found.accuracy) == 1
    assert float(found.chance) == (1 / 2 + 1 / 2 + 1 / 4 + 1 / 4) / 4
    assert (found.nearest[:2, 0, 2:] == -1).all() and set(found.nearest[0, 0].tolist()) == {
        0,
        1,
        -1,
    }
    with pytest.raises(ValueError, match="valid: must be True at all targets of each image"):
        target_retrieval(take_tokens(features, targets), features, targets, ~valid)


def test_the_mean_is_over_images_with_data() -> None:
    """Trap: padding in the mean of a position."""
    features, targets = a_case(3, 7, 2)
    mask = targets.to_mask()
    mask[..., 0] = False
    mask[6] = torch.arange(12) == 0  # the last image has data at position 0 only
    mask[:6, :, 5] = True
    targets = TokenSet.from_mask(mask, GRID)
    valid = torch.ones(7, 12, dtype=torch.bool)
    valid[6, 1:] = False
    mean = features[:6].mean(dim=0)
    pred = take_tokens(mean + 0.01 * (features - mean), targets)  # sensitive to the mean
    found = target_retrieval(pred, torch.where(valid.unsqueeze(-1), features, 300), targets, valid)
    alone = target_retrieval(pred[:6], features[:6], targets[:6])
    assert float(alone.accuracy) == 1
    assert torch.equal(found.hits[:6], alone.hits)


def test_equal_images_share_the_hit() -> None:
    """Trap: of equals, the one that a product happened to round up."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(5, 12, 33, generator=random).repeat(9, 1, 1)[:43]
    targets = random_targets(random, 43, 3)
    found = target_retrieval(take_tokens(features, targets), features, targets)
    copies = torch.tensor([9.0, 9.0, 9.0, 8.0, 8.0], dtype=torch.float64).repeat(9)[:43]
    torch.testing.assert_close(found.hits, (1 / copies).view(-1, 1).expand(-1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_content(dtype: torch.dtype) -> None:
    """Trap: a cosine of differences in the last bit, which a collapsed teacher still has."""
    random = torch.Generator().manual_seed(0)
    noise = torch.finfo(dtype).eps / 2 * torch.randn(6, 12, 8, generator=random).double()
    features = (torch.full((6, 12, 8), 1.5).double() * (1 + noise)).to(dtype)
    assert features.unique().numel() > 1
    targets = random_targets(random, 6, 2)
    found = target_retrieval(take_tokens(features, targets), features, targets)
    assert float(found.accuracy) == pytest.approx(1 / 6)


@pytest.mark.no_hook
def test_what_does_not_fit_raises() -> None:
    features, targets = a_case(0, 3, 2)
    pred = take_tokens(features, targets)
    for arguments, text in (
        ((pred[:, :1], features, targets), "pred .*: must hold one vector for each entry"),
        (
            (pred, features[:, :5], targets),
            r"features .*: must be of at least 2 images on the whole",
        ),
        ((pred[:2], features[:2], targets), r"targets .*: must be \[2, \.\.\., n\]"),
        ((pred[:1], features[:1], targets[:1]), "features .*: must be of at least 2 images"),
        ((pred, math.nan * features, targets), "must be finite"),
        ((pred, features, targets, torch.ones(3, 5, dtype=torch.bool)), "valid"),
    ):
        with pytest.raises(ValueError, match=text):
            target_retrieval(*arguments)
    with pytest.raises(ValueError, match="k=4: must be at most 3"):
        target_retrieval(pred, features, targets, k=4)
    nothing = TokenSet.from_mask(torch.zeros(3, 1, 12, dtype=torch.bool), GRID)
    with pytest.raises(ValueError, match="targets: must have at least one valid position"):
        target_retrieval(torch.zeros(3, 1, nothing.shape[-1], 6), features, nothing)
