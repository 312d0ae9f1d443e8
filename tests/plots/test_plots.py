"""Plots of audits and curves show the numbers that they were given; wrong arguments raise."""

import pytest
import torch

from jepakit import MultiBlockMask, RandomMask
from jepakit.masking import ReferenceMultiBlockMask, audit_masks

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402

from jepakit import plots  # noqa: E402


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def small(sampler):
    return audit_masks(
        sampler, num_batches=4, batch_size=8, generator=torch.Generator().manual_seed(0)
    )


def test_mask_audit_shows_the_frequencies():
    audits = {"a": small(ReferenceMultiBlockMask((12, 12))), "b": small(MultiBlockMask((12, 12)))}
    figure = plots.plot_mask_audit(audits)
    panels = [ax for ax in figure.axes if ax.images]
    for ax, role in zip(panels[:4], ["context"] * 2 + ["target"] * 2, strict=True):
        found = audits[ax.get_title() or "ab"[panels.index(ax) % 2]]
        shown = torch.as_tensor(ax.images[0].get_array().filled(float("nan")))
        torch.testing.assert_close(shown, getattr(found, f"{role}_frequency").view(12, 12))
    assert [ax.get_title() for ax in panels[:2]] == ["a", "b"]
    # One scale a row, so that colours can be compared.
    assert panels[0].images[0].get_clim() == panels[1].images[0].get_clim()
    assert "context" in panels[2].get_xlabel() and "tokens trimmed" in panels[2].get_xlabel()


def test_mask_audit_marks_what_never_has_a_role():
    never = matplotlib.colors.to_rgba("#D55E00")
    for sampler, some in ((ReferenceMultiBlockMask((12, 12)), True), (RandomMask((3, 3)), False)):
        figure = plots.plot_mask_audit(small(sampler))
        image = figure.axes[0].images[0]
        zero = torch.as_tensor(image.get_array().filled(1.0)) == 0
        coloured = torch.as_tensor(image.to_rgba(image.get_array()))
        marked = (coloured - torch.tensor(never, dtype=coloured.dtype)).abs().sum(dim=-1) < 1e-6
        assert torch.equal(marked, zero) and bool(zero.any()) is some
        assert bool(figure.legends) is some


@pytest.mark.parametrize(("grid", "shape"), [((7,), (1, 7)), ((3, 4, 5), (4, 17))])
def test_mask_audit_on_other_grids(grid, shape):
    figure = plots.plot_mask_audit({"one": small(RandomMask(grid, target_ratio=0.5))})
    assert figure.axes[0].images[0].get_array().shape == shape
    figure.canvas.draw()


def test_mask_audit_of_nothing():
    with pytest.raises(ValueError, match=r"^audit=\{\}: must hold at least one audit$"):
        plots.plot_mask_audit({})


def test_features_are_drawn_on_their_grid():
    """Trap: the square root of the number of tokens for a grid."""
    images, features = torch.rand(2, 1, 24, 16), {"a": torch.randn(2, 24, 8)}
    figure = plots.plot_patch_pca(images, features, (6, 4), smooth=False)
    assert [ax.images[0].get_array().shape[:2] for ax in figure.axes[::2]] == [(24, 16), (6, 4)]
    figure = plots.plot_patch_pca(images, features, (6, 4))
    assert [ax.images[0].get_array().shape[:2] for ax in figure.axes[::2]] == [(24, 16), (24, 16)]
    for grid_size, num_images, rows, error in (
        ((4, 4), 6, features, r"features\['a'\] \(2, 24, 8\): must hold .* on the grid \(4, 4\)"),
        ((6, 4), 0, features, "num_images=0: must be at least 1"),
        ((6, 4), 6, {}, "features=.*: must hold at least one row"),
        ((6, 0), 6, features, r"grid_size=\(6, 0\)"),
        ((24,), 6, features, r"grid_size=\(24,\): must have 2 axes, got 1"),
    ):
        with pytest.raises(ValueError, match=error):
            plots.plot_patch_pca(images, rows, grid_size, num_images=num_images)


def test_autocast_leaves_the_colours_alone():
    images, features = torch.rand(2, 3, 8, 8), {"a": torch.randn(2, 16, 8)}
    once = plots.plot_patch_pca(images, features, (4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        again = plots.plot_patch_pca(images, features, (4, 4))
    for one, other in zip(once.axes, again.axes, strict=True):
        assert (one.images[0].get_array() == other.images[0].get_array()).all()


def test_curves_are_drawn_over_what_was_counted():
    curves = {"loss": [(0, 1.0), (5, 0.5)], "rank": [(1, 2.0), (2, 3.0)]}
    panels = plots.plot_curves(curves, xlabel="epoch").axes
    assert [ax.get_title() for ax in panels] == list(curves)
    assert [ax.get_xlabel() for ax in panels] == ["epoch"] * 2
    for ax, points in zip(panels, curves.values(), strict=True):
        assert [tuple(point) for point in ax.lines[0].get_xydata()] == points
        assert [text.get_text() for text in ax.texts] == [f"{points[-1][1]:.3g}"]


@pytest.mark.parametrize(
    ("count", "places"),
    [
        (1, [(0, 0)]),
        (4, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (5, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]),
    ],
)
def test_curves_are_on_one_sheet_over_common_steps(count, places):
    """A panel each; labels of the axis below the lowest panel of each column, and nowhere else."""
    curves = {str(number): [(10 * number, 1.0), (50, 2.0)] for number in range(count)}
    panels = plots.plot_curves(curves).axes
    found = [ax.get_subplotspec() for ax in panels]
    assert [(spec.rowspan.start, spec.colspan.start) for spec in found] == places
    assert len({ax.get_xlim() for ax in panels}) == 1 and panels[0].get_xlim()[0] < 0
    columns = len({column for _, column in places})
    labels = [""] * (count - columns) + ["step"] * columns
    assert [ax.get_xlabel() for ax in panels] == labels


IMAGES = torch.rand(2, 3, 24, 24)
MASKS = RandomMask((4, 4))(2)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("plot", "arguments", "text"),
    [
        (plots.plot_masks, (IMAGES.numpy(), MASKS), "images: must be a torch.Tensor, got numpy"),
        (plots.plot_masks, (MASKS, IMAGES), "images: must be a torch.Tensor, got jepakit"),
        (plots.plot_masks, (IMAGES, MASKS.context), "masks: must be jepakit.Masks, got jepakit"),
        (plots.plot_curves, ([1, 2],), "curves: must be a mapping of titles to points, got list"),
        (plots.plot_curves, ({"a": 1},), "curves['a']: must be a sequence of points (step, value)"),
        (
            plots.plot_curves,
            ({"loss": [1, 2, 3]},),
            "curves['loss']: must be a sequence of points (step, value)",
        ),
        (
            plots.plot_patch_pca,
            (IMAGES, torch.rand(2, 16, 4), (4, 4)),
            "features: must be a mapping of labels to patch features, got torch.Tensor",
        ),
        (
            plots.plot_patch_pca,
            (IMAGES, {"a": [1.0]}, (4, 4)),
            "features['a']: must be a torch.Tensor, got list",
        ),
        (
            plots.plot_patch_pca,
            (IMAGES.numpy(), {"a": torch.rand(2, 16, 4)}, (4, 4)),
            "images: must be a torch.Tensor, got numpy",
        ),
        (
            plots.plot_masks,
            (IMAGES.byte(), MASKS),
            "images: must be floating point, got torch.uint8",
        ),
        (
            plots.plot_neighbours,
            (IMAGES, IMAGES, torch.tensor([[0]])),
            "neighbours: must be a mapping of names to indices, got torch.Tensor",
        ),
        (
            plots.plot_neighbours,
            (IMAGES, IMAGES, {"a": [[0], [1]]}),
            "neighbours['a']: must be a torch.Tensor, got list",
        ),
        (
            plots.plot_retrieval,
            (IMAGES, MASKS.targets, torch.zeros(2, 1, 1).long()),
            "masks: must be jepakit.Masks, got jepakit",
        ),
        (plots.plot_retrieval, (IMAGES, MASKS, [[[0]]]), "nearest: must be a torch.Tensor"),
        (plots.plot_mask_audit, (MASKS,), "audit: must be a MaskAudit, which audit_masks(sampler)"),
        (plots.plot_mask_audit, ({"a": 1},), "audit: must be a MaskAudit, which audit_masks"),
    ],
)
def test_arguments_of_another_type_raise(plot, arguments, text):
    with pytest.raises(TypeError) as raised:
        plot(*arguments)
    assert str(raised.value).startswith(text)
    assert not plt.get_fignums()
