"""Plots of images show what they say: read from the axes, pixel by pixel."""

import math

import pytest
import torch

from jepakit import MultiBlockMask, RandomMask, take_tokens
from jepakit.diagnostics import target_retrieval
from jepakit.evaluation import Features, nearest_neighbours

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402

from jepakit import plots  # noqa: E402

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def pixels(ax):
    """What an axes shows, `[h, w, 3]`."""
    (image,) = ax.images
    return torch.as_tensor(image.get_array().data)


def hwc(image):
    return image.permute(1, 2, 0).expand(-1, -1, 3)


def standardised(images):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def is_grey(shown):
    return (shown == shown[..., :1]).all(dim=-1) & (shown[..., 0] >= 0.35) & (shown[..., 0] <= 0.5)


def cells(ax, grid_size):
    """Grid cells that each outline of an axes encloses, from its line segments."""
    found = []
    height, width = pixels(ax).shape[:2]
    for lines in ax.collections:
        # From a border on, to the right or downwards, pixels are on its other side.
        from_left, from_top = torch.zeros(height + 1, width + 1), torch.zeros(height + 1, width + 1)
        for (x0, y0), (x1, y1) in lines.get_segments():
            assert x0 % 1 == y0 % 1 == 0.5  # between pixels
            row, column = int(y0 + 0.5), int(x0 + 0.5)
            if x0 == x1:
                assert y1 == y0 + 1
                from_left[row, column:] += 1
            else:
                assert y1 == y0 and x1 == x0 + 1
                from_top[row:, column] += 1
        inside = (from_left % 2 == 1)[:-1, :-1]
        assert torch.equal(inside, (from_top % 2 == 1)[:-1, :-1])
        found.append(inside[:: height // grid_size[0], :: width // grid_size[1]].flatten())
    return found


@pytest.mark.parametrize("normalised", [False, True])
def test_masks_are_drawn_where_they_are(normalised):
    """Context visible, what is hidden grey, targets visible with their outlines.

    Traps: height and width swapped; standardised images clipped; masks of another image.
    """
    images = 0.05 + 0.9 * torch.rand(3, 3, 16, 24)
    masks = MultiBlockMask((4, 6))(3, generator=torch.Generator().manual_seed(0))
    arguments = {"mean": MEAN, "std": STD} if normalised else {}
    given = standardised(images) if normalised else images
    axes = plots.plot_masks(given, masks, **arguments).axes
    assert [ax.get_ylabel() for ax in axes[::3]] == ["image", "context", "targets"]
    context = masks.context.to_mask().view(3, 4, 6)
    targets = masks.targets.to_mask().view(3, -1, 4, 6)
    for column in range(3):
        whole, seen, blocks = (pixels(axes[3 * row + column]) for row in range(3))
        torch.testing.assert_close(whole, hwc(images[column]), atol=1e-5, rtol=0)
        for shown, mask in ((seen, context[column]), (blocks, targets[column].any(dim=0))):
            visible = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
            assert torch.equal(shown[visible], whole[visible])
            assert torch.equal(is_grey(shown), ~visible)
        outlines = cells(axes[6 + column], (4, 6))
        assert torch.equal(torch.stack(outlines), targets[column].flatten(1))


@pytest.mark.parametrize(("num_images", "shown"), [(1, 1), (2, 2), (9, 3)])
def test_no_more_images_than_num_images(num_images, shown):
    images, masks = torch.rand(3, 1, 8, 8), RandomMask((4, 4))(3)
    panels = plots.plot_masks(images, masks, num_images=num_images).axes
    assert len(panels) == 3 * shown
    for image, ax in zip(images[:shown], panels[:shown], strict=True):
        assert torch.equal(pixels(ax), hwc(image))


def test_images_outside_of_their_range_raise():
    """Trap: standardised images, clipped to black and white without a word."""
    images, masks = torch.rand(2, 3, 8, 8), RandomMask((4, 4))(2)
    with pytest.raises(ValueError, match=r"images: must lie in \[0, 1\], got values from .* mean"):
        plots.plot_masks(standardised(images), masks)
    with pytest.raises(ValueError, match=r"images: must lie in \[0, 1\]"):
        plots.plot_masks(images * math.nan, masks)
    with pytest.raises(ValueError, match=r"mean=\(0\.5,\), std=\(0\.5,\): must be one number each"):
        plots.plot_masks(images, masks, mean=(0.5,), std=(0.5,))
    with pytest.raises(TypeError, match="std=None: must be a sequence of numbers"):
        plots.plot_masks(images, masks, mean=MEAN)
    with pytest.raises(
        ValueError, match=r"images \(2, 2, 8, 8\): must be \[b, c, h, w\] with 1 or"
    ):
        plots.plot_masks(images[:, :2], masks)
    shown = plots.plot_masks(1.05 * images, masks).axes[0]  # interpolation overshoots
    assert torch.equal(pixels(shown), hwc((1.05 * images[0]).clamp(0, 1)))


@pytest.mark.parametrize("smooth", [False, True])
def test_patch_colours_mean_the_same_in_all_images(smooth):
    """One projection for the batch: equal features have equal colours, in whichever image.

    Traps: a projection for each image; one of the images that are shown.
    """
    generator = torch.Generator().manual_seed(0)
    images, features = torch.rand(8, 3, 8, 8), torch.randn(8, 16, 5, generator=generator)
    features[1] = features[0]
    figures = [
        plots.plot_patch_pca(
            images, {"a": features[order], "b": features}, (4, 4), smooth=smooth, num_images=count
        )
        for order, count in ((slice(None), 2), (slice(None), 8), (torch.arange(8).flip(0), 8))
    ]
    few, all_of_them, flipped = ([pixels(ax) for ax in figure.axes] for figure in figures)
    assert torch.equal(few[2], few[3]) and not torch.equal(all_of_them[8], all_of_them[10])
    assert torch.equal(few[2], all_of_them[8])
    torch.testing.assert_close(flipped[15], all_of_them[8], atol=1e-6, rtol=0)
    rows = figures[0].axes[::2]
    assert [ax.get_ylabel() for ax in rows] == ["image", "a", "b"]


def test_patch_colours_are_the_principal_components():
    """Red is the first component, which holds most variance; outliers do not take the range."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 25, 3, generator=generator)
    scale = torch.tensor([9.0, 3.0, 1.0])
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:3]
    features = (scores * scale) @ basis
    features[0, 0] += 100 * basis[0]
    axes = plots.plot_patch_pca(
        torch.rand(4, 3, 10, 10), {"a": features}, (5, 5), smooth=False
    ).axes
    shown = torch.stack([pixels(ax).flatten(0, 1) for ax in axes[4:]]).flatten(0, 1)
    expected = scores.flatten(0, 1).double()
    for channel in range(3):
        both = torch.stack([shown[1:, channel], expected[1:, channel]])
        assert abs(float(torch.corrcoef(both)[0, 1])) > 0.95
        assert shown[1:, channel].max() > 0.9 and shown[1:, channel].min() < 0.1
    assert ((shown >= 0) & (shown <= 1)).all()


def test_patch_pca_of_standardised_images():
    images = 0.05 + 0.9 * torch.rand(2, 3, 8, 8)
    figure = plots.plot_patch_pca(
        standardised(images), {"a": torch.randn(2, 16, 5)}, (4, 4), mean=MEAN, std=STD
    )
    torch.testing.assert_close(pixels(figure.axes[1]), hwc(images[1]), atol=1e-5, rtol=0)


def frame_of(ax):
    (colour,) = {to_hex(spine.get_edgecolor()) for spine in ax.spines.values()}
    return {"#0072b2": True, "#d55e00": False}.get(colour)


def test_neighbours_are_beside_their_query():
    """Traps: neighbours of another query; labels of the query's index in the gallery."""
    gallery, queries = torch.rand(9, 1, 8, 8), torch.rand(4, 1, 8, 8)
    labels, gallery_labels = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    found = {"pixels": torch.randint(0, 9, (4, 3)), "trained": torch.randint(0, 9, (4, 2))}
    figure = plots.plot_neighbours(
        queries, gallery, found, labels=labels, gallery_labels=gallery_labels, num_queries=3
    )
    panels = {}
    for ax in figure.axes:
        spec = ax.get_subplotspec()
        panels[spec.rowspan.start, spec.colspan.start] = ax
    columns = {"pixels": [2, 3, 4], "trained": [6, 7]}
    assert set(panels) == {(row, column) for row in range(3) for column in (0, 2, 3, 4, 6, 7)}
    for row in range(3):
        assert torch.equal(pixels(panels[row, 0]), hwc(queries[row]))
        for name, places in columns.items():
            for place, index in zip(places, found[name][row].tolist(), strict=True):
                ax = panels[row, place]
                assert torch.equal(pixels(ax), hwc(gallery[index]))
                assert frame_of(ax) is bool(labels[row] == gallery_labels[index])
    titles = {place: ax.get_title(loc="left") for place, ax in panels.items()}
    assert {place: title for place, title in titles.items() if title} == {
        (0, 0): "query", (0, 2): "pixels", (0, 6): "trained",
    }  # fmt: skip
    assert [text.get_text() for text in figure.legends[0].texts] == ["same class", "another class"]
    plain = plots.plot_neighbours(queries, gallery, found)
    assert not plain.legends and all(frame_of(ax) is None for ax in plain.axes)


def test_neighbours_of_features():
    """The indices are those of `nearest_neighbours`; images may be standardised."""
    images = 0.05 + 0.9 * torch.rand(6, 3, 8, 8)
    rows = Features(images.flatten(1), torch.arange(6))
    found = nearest_neighbours(rows, Features(rows.x[3:], rows.y[3:]), k=2)
    assert found[:, 0].tolist() == [3, 4, 5]
    shown = standardised(images)
    figure = plots.plot_neighbours(shown[3:], shown, {"pixels": found}, mean=MEAN, std=STD)
    query, nearest = (ax for ax in figure.axes if ax.get_title(loc="left"))
    assert torch.equal(pixels(query), pixels(nearest))
    torch.testing.assert_close(pixels(query), hwc(images[3]), atol=1e-5, rtol=0)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("found", "labels", "text"),
    [
        ({}, {}, "neighbours={}: must hold the indices of at least one encoder"),
        (
            {"a": torch.tensor([[0], [9]])},
            {},
            r"neighbours\['a'\]: must be indices of the 5 gallery",
        ),
        ({"a": torch.tensor([[-1], [0]])}, {}, r"neighbours\['a'\]: must be indices of the 5"),
        ({"a": torch.tensor([[0]])}, {}, r"neighbours\['a'\] \(1, 1\): must be \[2, k\]"),
        ({"a": torch.zeros(2, 1)}, {}, r"neighbours\['a'\]: must be indices"),
        (None, {"labels": torch.arange(2)}, "labels and gallery_labels: must both be given"),
        (
            None,
            {"labels": torch.arange(3), "gallery_labels": torch.arange(5)},
            r"labels \(3,\): must be one for each image",
        ),
    ],
)
def test_neighbours_that_do_not_fit_raise(found, labels, text):
    found = {"a": torch.tensor([[0], [1]])} if found is None else found
    with pytest.raises(ValueError, match=text):
        plots.plot_neighbours(torch.rand(2, 1, 4, 4), torch.rand(5, 1, 4, 4), found, **labels)
    assert not plt.get_fignums()


@pytest.mark.parametrize("target", [0, 1])
def test_retrieval_shows_what_was_found(target):
    """Traps: another block; the found image's own block in place of the query's positions."""
    images = 0.05 + 0.9 * torch.rand(4, 3, 12, 16)
    masks = MultiBlockMask((3, 4), num_targets=2)(4, generator=torch.Generator().manual_seed(1))
    features = torch.randn(4, 12, 6)
    pred = take_tokens(features, masks.targets)
    pred[0] = -pred[0]  # finds another image
    found = target_retrieval(pred, features, masks.targets, k=2)
    figure = plots.plot_retrieval(
        standardised(images), masks, found.nearest, target=target, mean=MEAN, std=STD, num_images=3
    )
    context = masks.context.to_mask().view(4, 3, 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
    blocks = masks.targets.to_mask()[:, target]
    assert len(figure.axes) == 3 * 4
    frames = []
    for row in range(3):
        seen, whole, *others = figure.axes[4 * row : 4 * row + 4]
        torch.testing.assert_close(pixels(whole), hwc(images[row]), atol=1e-5, rtol=0)
        assert torch.equal(pixels(seen)[context[row]], pixels(whole)[context[row]])
        assert torch.equal(is_grey(pixels(seen)), ~context[row])
        block = blocks[row].view(3, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
        for ax in (seen, whole, *others):
            assert torch.equal(cells(ax, (3, 4))[0], blocks[row])
        for ax, index in zip(others, found.nearest[row, target].tolist(), strict=True):
            expected = hwc(images[index])
            torch.testing.assert_close(pixels(ax)[block], expected[block], atol=1e-5, rtol=0)
            assert torch.equal(is_grey(pixels(ax)), ~block)
            assert frame_of(ax) is (index == row)
            frames.append(frame_of(ax))
    assert frames[0] is False and frames[2] is frames[4] is True
    assert [ax.get_title() for ax in figure.axes[:4]] == ["context", "image", "found 1", "found 2"]


def test_retrieval_without_enough_candidates_leaves_places_empty():
    masks = RandomMask((2, 2), target_ratio=0.5)(2)
    figure = plots.plot_retrieval(
        torch.rand(2, 1, 4, 4), masks, torch.tensor([[[0, -1]], [[1, 0]]])
    )
    assert not figure.axes[3].images and not figure.axes[3].axison
    assert figure.axes[7].images


@pytest.mark.no_hook
def test_retrieval_that_does_not_fit_raises():
    images, masks = torch.rand(2, 1, 4, 4), RandomMask((2, 2), target_ratio=0.5)(2)
    good = torch.zeros(2, 1, 1, dtype=torch.int64)
    for nearest, target, text in (
        (good[:1], 0, r"nearest \(1, 1, 1\): must be \[2, 1, 'k'\]"),
        (good + 2, 0, "nearest: must be indices of the 2 images, or -1"),
        (good, 1, "target=1: must be at most 0"),
    ):
        with pytest.raises(ValueError, match=text):
            plots.plot_retrieval(images, masks, nearest, target=target)
    assert not plt.get_fignums()
