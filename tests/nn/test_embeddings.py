"""Embeddings of patches: equal to a convolution, computed for the context alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from jepakit import TokenSet, take_tokens
from jepakit.nn import Frames, Patches, Tubelets

CASES = [
    (lambda: Tubelets((2, 4, 3), 10), F.conv3d, (3, 4, 8, 9), (2, 2, 3)),
    (lambda: Patches((4, 2), 10, in_channels=1), F.conv2d, (1, 12, 8), (3, 4)),
    (lambda: Frames(5, 10, in_channels=7), F.conv1d, (7, 30), (6,)),
]


@pytest.mark.parametrize(("build", "convolution", "shape", "grid"), CASES)
def test_equals_a_strided_convolution(build, convolution, shape, grid, assert_close, ragged):
    """Trap: pixels of a patch in another order than the kernel's, or the grid not row-major."""
    embed, inputs = build(), torch.randn(2, *shape)
    expected = convolution(inputs, embed.proj.weight, embed.proj.bias, embed.patch_size)
    expected = expected.flatten(2).mT
    assert embed.grid_size_of(shape[1:]) == grid
    assert_close(embed(inputs), expected)
    context = ragged(grid, 2)
    here = take_tokens(expected, context)
    assert_close(embed(inputs, context)[context.valid], here[context.valid])


def test_hidden_patches_cost_nothing() -> None:
    embed, clip = Tubelets((2, 4, 4), 16), torch.randn(1, 3, 4, 16, 16)
    quarter = TokenSet.from_indices(torch.arange(8)[None], (2, 4, 4))
    counts = []
    for context in (None, quarter):
        with FlopCounterMode(display=False) as counter:
            embed(clip, context)
        counts.append(counter.get_total_flops())
    assert counts[1] * 4 == counts[0] > 0


def test_weights_have_the_names_and_shapes_of_a_convolution() -> None:
    published = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4)).state_dict()
    embed = Tubelets((2, 4, 4), 8)
    embed.proj.load_state_dict(published)
    assert {name: value.shape for name, value in embed.state_dict().items()} == {
        f"proj.{name}": value.shape for name, value in published.items()
    }


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Tubelets((2, 4), 8), r"tubelet_size=\(2, 4\): must be \(frames, height, width\)"),
        (lambda: Patches((4, 0), 8), r"patch_size\[1\]=0: must be at least 1"),
        (lambda: Frames(0, 8), r"frame_size=0: must be at least 1"),
        (lambda: Frames(2, 0), r"embed_dim=0: must be at least 1"),
        (lambda: Frames(2, 8, 0), r"in_channels=0: must be at least 1"),
        (lambda: Patches(4, 8).grid_size_of((8, 6)), r"size \(8, 6\): must be multiples of .*4, 4"),
        (lambda: Patches(4, 8).grid_size_of((8,)), r"size \(8,\): must have 2 axes beside batch"),
        (
            lambda: Tubelets((2, 4, 4), 8)(torch.zeros(1, 8, 3, 8, 8)),
            r"inputs \(1, 8, 3, 8, 8\): must have 3 channels on axis 1; move the axis",
        ),
        (
            lambda: Tubelets((2, 4, 4), 8)(torch.zeros(1, 3, 8, 8)),
            r"inputs of size \(8, 8\): must have 3 axes",
        ),
    ],
)
def test_errors(call, text) -> None:
    with pytest.raises(ValueError, match=text):
        call()
