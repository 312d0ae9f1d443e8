"""`adapt=True`: published weights in encoders for other channels, patch sizes and grids."""

from typing import Any

import pytest
import timm
import torch
from tests.interop import published
from tests.interop.conftest import same, snapshot
from timm.layers import resample_abs_pos_embed

from jepakit import EMATeacher
from jepakit.interop import Adaptation, load_hf_ijepa, load_ijepa
from jepakit.nn._backbones.resample import adapt_positions

# timm before 1.0.27 leaves positions alone where another grid has as many.
TIMM = tuple(int(part) for part in timm.__version__.split(".")[:3])
resamples_every_grid = pytest.mark.skipif(
    TIMM < (1, 0, 27), reason=f"timm {timm.__version__} does not resample 4 x 4 positions to 2 x 8"
)

SIDE, PATCH, DIM = (published.ENCODER[key] for key in ("side", "patch", "dim"))


@pytest.fixture
def original(build_encoder) -> Any:
    encoder = build_encoder()
    assert load_ijepa(published.checkpoint(), encoder=encoder, adapt=True) == []
    return encoder


@torch.no_grad()
def test_one_channel(original, build_encoder) -> None:
    """A grey image gives what the same image in colour gives the published encoder."""
    encoder = build_encoder(in_chans=1)
    report = load_ijepa(published.checkpoint(), encoder=encoder, adapt=True)
    assert report == [
        Adaptation("encoder", "patch_embed.proj.weight", (DIM, 3, PATCH, PATCH),
                   (DIM, 1, PATCH, PATCH), "summed over channels")
    ]  # fmt: skip
    grey = torch.rand(2, 1, SIDE * PATCH, SIDE * PATCH)
    torch.testing.assert_close(encoder(grey), original(grey.expand(-1, 3, -1, -1)))


@torch.no_grad()
def test_six_channels(original, build_encoder) -> None:
    encoder = build_encoder(in_chans=6)
    (report,) = load_ijepa(published.checkpoint(), encoder=encoder, adapt=True)
    assert report.method == "repeated over channels"
    images = torch.rand(2, 3, SIDE * PATCH, SIDE * PATCH)
    actual = encoder(torch.cat([images, images], dim=1))
    torch.testing.assert_close(actual, original(images), rtol=1e-4, atol=1e-4)


@resamples_every_grid
@torch.no_grad()
@pytest.mark.parametrize(
    ("patch", "size"), [(PATCH, (6, 24)), (PATCH, (15, 18)), (4, (16, 16)), (2, (8, 12))]
)
def test_other_sizes_are_timms(original, build_encoder, patch, size) -> None:
    """Positions and kernel are those of timm's `set_input_size` on the published model."""
    encoder = build_encoder(img_size=size, patch_size=patch)
    report = load_ijepa(published.checkpoint(), encoder=encoder, adapt=True)
    original.backbone.set_input_size(img_size=size, patch_size=(patch, patch))
    assert encoder.grid_size == original.grid_size
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(encoder(images), original(images))
    names = {adaptation.name for adaptation in report}
    changed = {"patch_embed.proj.weight": patch != PATCH, "pos_embed": encoder.grid_size != (4, 4)}
    assert names == {name for name, was in changed.items() if was}


@torch.no_grad()
@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_predictor_on_another_grid(build_predictor, position) -> None:
    """A fixed table is computed for the grid, a learned one interpolated."""
    checkpoint = published.checkpoint()
    known = build_predictor(position=position)
    load_ijepa(checkpoint, predictor=known)
    predictor = build_predictor(position=position, grid_size=(2, 8))
    (report,) = load_ijepa(checkpoint, predictor=predictor, adapt=True)
    assert (report.part, report.name) == ("predictor", "predictor_pos_embed")
    state, expected = predictor.state_dict(), known.state_dict()
    if position == "learned":
        table = expected["position_table"][None]
        expected["position_table"] = resample_abs_pos_embed(
            table, [2, 8], [4, 4], num_prefix_tokens=0
        )[0]
    else:
        fresh = build_predictor(grid_size=(2, 8)).state_dict()
        assert {name for name in state if "position" in name} == {
            name for name in fresh if "position" in name
        }
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor)


def test_a_table_that_is_not_the_published_one(build_predictor) -> None:
    """Trap: a learned table taken for the fixed one, since the grid differs anyway."""
    checkpoint = published.checkpoint()
    checkpoint["predictor"]["module.predictor_pos_embed"].add_(0.1)
    with pytest.raises(ValueError, match=r"differs from the published .* position='learned'"):
        load_ijepa(checkpoint, predictor=build_predictor(grid_size=(2, 8)), adapt=True)


def test_the_error_names_the_way(build_encoder) -> None:
    for changes in ({"img_size": 15}, {"in_chans": 1}, {"patch_size": 2, "img_size": 8}):
        with pytest.raises(ValueError, match=r", or pass adapt=True$"):
            load_ijepa(published.checkpoint(), encoder=build_encoder(**changes))
    with pytest.raises(ValueError, match=r"with in_chans=3, .*depth=2|with .*depth=2") as error:
        load_ijepa(published.checkpoint(), encoder=build_encoder(depth=1, in_chans=1))
    assert "adapt" not in str(error.value)


@pytest.mark.no_hook
def test_adapt_is_a_bool(build_encoder) -> None:
    with pytest.raises(TypeError, match="adapt=1: must be a bool"):
        load_ijepa(published.checkpoint(), encoder=build_encoder(), adapt=1)


def test_what_cannot_be_adapted(parts, build_encoder) -> None:
    """All or nothing here too: the encoder could be adapted, the teacher does not fit."""
    parts = parts | {"encoder": build_encoder(in_chans=1)}
    checkpoint = published.checkpoint()
    del checkpoint["target_encoder"]["module.norm.bias"]
    before = snapshot(parts)
    with pytest.raises(ValueError, match="teacher's backbone, but lacks"):
        load_ijepa(checkpoint, **parts, adapt=True)
    assert same(snapshot(parts), before)
    checkpoint = published.checkpoint()
    kernel = checkpoint["encoder"]["module.patch_embed.proj.weight"]
    checkpoint["encoder"]["module.patch_embed.proj.weight"] = kernel[:, :2]
    with pytest.raises(ValueError, match=r"must have the shapes .* \(32, 2, 3, 3\) against"):
        load_ijepa(checkpoint, encoder=build_encoder(), adapt=True)


@resamples_every_grid
@torch.no_grad()
def test_hugging_face(original, build_encoder) -> None:
    names = {"patch_embed.proj.": "embeddings.patch_embeddings.projection.", "norm.": "layernorm."}
    encoder = build_encoder(depth=0)
    load = {"embeddings.position_embeddings": original.backbone.pos_embed.data}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            load[theirs + kind] = original.backbone.get_parameter(ours + kind).data
    grey = build_encoder(depth=0, in_chans=1, img_size=(6, 24))
    with pytest.raises(ValueError, match=r"or pass adapt=True$"):
        load_hf_ijepa(load, grey)
    report = load_hf_ijepa(load, grey, adapt=True)
    assert [each.name for each in report] == ["patch_embed.proj.weight", "pos_embed"]
    assert load_hf_ijepa(load, encoder) == []
    encoder.backbone.set_input_size(img_size=(6, 24))
    images = torch.rand(1, 1, 6, 24)
    torch.testing.assert_close(grey(images), encoder(images.expand(-1, 3, -1, -1)))


def test_teacher(build_encoder) -> None:
    teacher = EMATeacher(build_encoder(img_size=24), 0.9)
    (report,) = load_ijepa(published.checkpoint(), teacher=teacher, adapt=True)
    assert report == Adaptation(
        "teacher", "pos_embed", (1, 16, DIM), (1, 64, DIM), "interpolated to the grid (8, 8)"
    )


@resamples_every_grid
def test_positions_come_from_the_grid_that_is_named() -> None:
    """Trap: 2 x 8 positions of a configured model are taken for 4 x 4."""
    rows = torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 8, 1).reshape(1, 16, 1)
    resampled = adapt_positions(rows, (4, 4), (2, 8)).view(4, 4)
    torch.testing.assert_close(resampled, resampled[:, :1].expand(4, 4))  # constant along a row
    assert (resampled[1:, 0] > resampled[:-1, 0]).all()
    assert torch.equal(adapt_positions(rows, (4, 4)), rows)
