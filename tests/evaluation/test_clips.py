"""Evaluation of clips: several clips and views of a video, features of every step of time."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from jepakit import EMATeacher
from jepakit.evaluation import JoinedClips, TimeSteps, attentive, attentive_probe
from jepakit.nn import TokenViT, Tubelets

QUICK = {"num_heads": 2, "epochs": 20, "lr": 3e-3}


@pytest.fixture(scope="module")
def encoder() -> TokenViT:
    torch.manual_seed(0)
    return TokenViT((2, 2, 3), 24, 2, 2, embed=Tubelets((2, 4, 4), 24), position="sincos").eval()


def test_joined_clips_are_those_of_the_encoder(encoder) -> None:
    """Trap: clips of one video and videos of a batch exchanged."""
    videos = torch.randn(3, 2, 3, 4, 8, 12)
    joined = JoinedClips(encoder)(videos)
    assert joined.shape == (3, 24, 24)
    for number, video in enumerate(videos):
        torch.testing.assert_close(joined[number], encoder(video).flatten(0, 1))


def test_steps_are_means_over_places(encoder) -> None:
    """Trap: means over the wrong axis, no better than random. Longer clips too."""
    clips = torch.randn(2, 3, 6, 8, 12)
    steps = TimeSteps(encoder)(clips)
    grid = encoder(clips).view(2, 3, 2, 3, 24)
    torch.testing.assert_close(steps, grid.mean((2, 3)))
    frames = TimeSteps(encoder, repeats=2)(clips)
    assert torch.equal(frames[:, ::2], steps) and torch.equal(frames[:, 1::2], steps)


def test_modules_are_put_in_eval_mode(encoder) -> None:
    """They hold the encoder as a submodule, so `extract_features` sees its mode."""
    for module in (JoinedClips(encoder), TimeSteps(encoder)):
        assert encoder in list(module.modules())


def views(count: int, seed: int, noise: float, num_views: int = 4) -> TensorDataset:
    """Items with several views `[v n d]` of one class each; a view alone is noisy."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    centres = torch.eye(8)[labels][:, None, None]
    return TensorDataset(
        centres + noise * torch.randn(count, num_views, 2, 8, generator=generator), 10 * labels
    )


def test_predictions_are_averaged_over_views() -> None:
    """Trap: the first view judged alone, or every view on its own."""
    train, test = views(400, 0, 1.2), views(300, 1, 1.2)
    several = attentive_probe(nn.Identity(), train, test, **QUICK, views=True)
    first = [TensorDataset(each.tensors[0][:, 0], each.tensors[1]) for each in (train, test)]
    single = attentive_probe(nn.Identity(), *first, **QUICK)
    assert several > single + 0.1


def test_a_single_view_is_no_view() -> None:
    """Bit for bit, held-out selection of the learning rate included."""
    options = QUICK | {"lr": (1e-3, 3e-3)}
    train, test = views(200, 0, 0.8, 1), views(100, 1, 0.8, 1)
    with_axis = attentive_probe(nn.Identity(), train, test, **options, views=True)
    plain = [TensorDataset(each.tensors[0][:, 0], each.tensors[1]) for each in (train, test)]
    assert attentive_probe(nn.Identity(), *plain, **options) == with_axis


def test_views_of_one_item_are_held_out_together(monkeypatch) -> None:
    """Trap: a learning rate chosen on other views of what the head was fitted on."""
    sizes = []
    real = attentive.held_out

    def recorded(labels: Tensor, *rest: object) -> Tensor:
        sizes.append(len(labels))
        return real(labels, *rest)

    monkeypatch.setattr(attentive, "held_out", recorded)
    train, test = views(40, 0, 0.8), views(20, 1, 0.8)
    options = {"num_heads": 2, "epochs": 1, "lr": (1e-3, 3e-3)}
    attentive_probe(nn.Identity(), train, test, **options, views=True)
    assert sizes == [40], "items, not views"


def test_prepare_and_encode_see_single_views() -> None:
    seen = []

    def prepare(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    options = {"num_heads": 2, "epochs": 1, "lr": 1e-3, "prepare": prepare}
    attentive_probe(nn.Identity(), views(12, 0, 0.5), views(8, 1, 0.5), **options, views=True)
    assert seen == [(48, 2, 8), (32, 2, 8)]


def test_clips_and_views_together(encoder) -> None:
    """Items `[v s c t h w]`: 2 views of 3 clips."""
    sets = [
        TensorDataset(torch.randn(10, 2, 3, 3, 4, 8, 12), torch.arange(10) % 2) for _ in range(2)
    ]
    accuracy = attentive_probe(JoinedClips(encoder), *sets, epochs=1, lr=1e-3, views=True)
    assert 0 <= accuracy <= 1


@pytest.mark.no_hook
def test_wrong_shapes_are_named(encoder) -> None:
    with pytest.raises(ValueError, match=r"clips \(2, 3, 4, 8, 12\): must be several a video"):
        JoinedClips(encoder)(torch.randn(2, 3, 4, 8, 12))
    with pytest.raises(ValueError, match=r"clips \(2, 3, 8, 12\): must be \[b c t h w\]"):
        TimeSteps(encoder)(torch.randn(2, 3, 8, 12))
    with pytest.raises(TypeError, match="encoder=EMATeacher: must have grid_size_of"):
        TimeSteps(EMATeacher(encoder, 0.5))(torch.randn(2, 3, 4, 8, 12))
    with pytest.raises(ValueError, match="repeats=0: must be at least 1"):
        TimeSteps(encoder, repeats=0)
    flat = TensorDataset(torch.randn(6, 4), torch.arange(6) % 2)
    with pytest.raises(ValueError, match=r"must yield several views \[b v ...\], got \(6, 4\)"):
        attentive_probe(nn.Identity(), flat, flat, views=True)


class Pooled(nn.Module):
    """An encoder that returns fewer features than its grid has places."""

    def grid_size_of(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (2, 2, 2)

    def forward(self, clips: Tensor) -> Tensor:
        return clips.new_zeros(len(clips), 1, 4)


@pytest.mark.no_hook
def test_features_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 1, 4\) for the grid \(2, 2, 2\)"):
        TimeSteps(Pooled())(torch.randn(1, 3, 4, 8, 8))
