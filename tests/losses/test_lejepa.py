"""LeJEPA's sum of two terms, and the invariance of views."""

import pytest
import torch

from jepakit.losses import invariance_loss, lejepa_loss, sigreg


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_modes_weigh_as_their_names_say() -> None:
    """Trap: inv + l * reg in one place and (1 - l) * inv + l * reg in another, both called l."""
    views = torch.randn(3, 20, 4, generator=seeded()) + 1
    invariance = invariance_loss(views)
    statistic = torch.stack([sigreg(view, generator=seeded(1)) for view in views]).mean()
    convex = lejepa_loss(views, weight=0.3, generator=seeded(1))
    torch.testing.assert_close(convex, 0.7 * invariance + 0.3 * statistic)
    additive = lejepa_loss(views, weight=3.0, mode="additive", generator=seeded(1))
    torch.testing.assert_close(additive, invariance + 3.0 * statistic)
    with pytest.raises(ValueError, match=r"weight=3: must lie in \[0, 1\]"):
        lejepa_loss(views, weight=3.0)
    with pytest.raises(ValueError, match="weight=-1: must be at least 0"):
        lejepa_loss(views, weight=-1.0, mode="additive")


def test_the_integral_can_be_set() -> None:
    """Law 12. Trap: arguments that are taken and not handed on."""
    views = torch.randn(2, 20, 4, generator=seeded())
    for change in ({"num_points": 5}, {"t_max": 4.0}):
        each = [sigreg(view, **change, generator=seeded(1)) for view in views]
        ours = lejepa_loss(views, weight=1.0, **change, generator=seeded(1))
        torch.testing.assert_close(ours, torch.stack(each).mean())


def test_views_are_tested_apart() -> None:
    """Trap: correlated views pooled as one sample, in which each could be far from Gaussian."""
    ends = torch.randn(2000, 1, generator=seeded()).abs()
    views = torch.stack([ends, -ends])  # together they look normal
    pooled = sigreg(views, num_slices=64, generator=seeded(1))
    apart = lejepa_loss(views, weight=1.0, num_slices=64, generator=seeded(1))
    assert apart > 5 * pooled


def test_centre_of_the_global_views() -> None:
    views = torch.tensor([0.0, 2.0, 7.0]).view(3, 1, 1).expand(3, 4, 1)
    assert invariance_loss(views, num_global_views=2) == (1 + 1 + 36) / 3
    assert invariance_loss(views) == (9 + 1 + 16) / 3
    assert lejepa_loss(views, weight=0.0, num_global_views=1) == (4 + 49) / 3
    with pytest.raises(ValueError, match="num_global_views=4: must be at most"):
        invariance_loss(views, num_global_views=4)


def test_a_centre_is_of_valid_views() -> None:
    """Each token's views that are valid, and none without a centre."""
    views = torch.tensor([[[0.0], [5.0]], [[2.0], [9.0]], [[7.0], [4.0]]])
    valid = torch.tensor([[True, False], [False, False], [True, True]])
    assert invariance_loss(views, valid) == (3.5**2 + 3.5**2 + 0) / 3
    assert invariance_loss(views, valid, num_global_views=2) == (0 + 49) / 2


def test_every_view_has_its_own_valid_rows() -> None:
    """Both terms: the statistic is that of the rows that count in this view."""
    views = torch.randn(2, 6, 4, dtype=torch.float64, generator=seeded())
    valid = torch.tensor([[True] * 6, [True, False] * 3])
    dirty = views.masked_fill(~valid.unsqueeze(-1), torch.nan)
    alone = lejepa_loss(dirty, valid, weight=1.0, num_slices=8, generator=seeded(1))
    kept = [
        sigreg(x[v], num_slices=8, generator=seeded(1)) for x, v in zip(views, valid, strict=True)
    ]
    torch.testing.assert_close(alone, torch.stack(kept).mean())


def test_exchanged_axes_give_a_warning() -> None:
    """Trap: [batch, views, d] is taken for many views of few samples, without a word."""
    with pytest.warns(UserWarning, match=r"views \(16, 3, 8\): more views than samples"):
        lejepa_loss(torch.randn(16, 3, 8))
    lejepa_loss(torch.randn(4, 4, 8))
    lejepa_loss(torch.randn(4, 2, 3, 8))  # tokens are samples, too


def test_few_samples_of_this_rank_are_no_mistake(process_group) -> None:
    lejepa_loss(torch.randn(6, 2, 4), process_group=torch.distributed.group.WORLD)


@pytest.mark.no_hook
def test_few_samples_compile() -> None:
    views = torch.randn(6, 2, 4)
    torch.compiler.reset()
    compiled = torch.compile(lejepa_loss, fullgraph=True, backend="eager")
    assert torch.isfinite(compiled(views))


@pytest.mark.no_hook
def test_a_list_of_views_is_no_tensor() -> None:
    with pytest.raises(TypeError, match=r"^views: must be a torch\.Tensor; torch\.stack"):
        lejepa_loss([torch.randn(4, 8), torch.randn(4, 8)])


def test_one_view_has_nothing_to_agree_with() -> None:
    with pytest.raises(ValueError, match=r"views \(1, 4, 3\): must have the shape"):
        lejepa_loss(torch.randn(1, 4, 3))
