"""Random draws on the CPU do not depend on the default device or dtype."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from jepakit import (
    EMATeacher,
    IndexedDataset,
    MaskCollator,
    MaskedPredictor,
    MultiBlockMask,
    RandomMask,
)
from jepakit.data import (
    EpochIndex,
    PixelStatistics,
    ResumableBatches,
    random_crops,
    textured_shapes,
)
from jepakit.losses import sigreg
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InverseBlockMask,
    MultiContextMask,
    NestedMask,
    ReferenceMultiBlockMask,
    TubeMask,
    UnionMask,
    audit_masks,
    vjepa_masks,
)
from jepakit.nn.quantizer import draw_vectors, gumbel_like
from jepakit.plots import plot_masks

SAMPLERS: dict[str, Callable[[], Any]] = {
    "multiblock": lambda: MultiBlockMask((8, 9), target_size_per="sample"),
    "space and time": lambda: MultiBlockMask((4, 6, 6), temporal_scale=(0.5, 1.0)),
    "random": lambda: RandomMask((8, 9)),
    "block": lambda: BlockMask((8, 9)),
    "inverse block": lambda: InverseBlockMask((8, 9)),
    "tube": lambda: TubeMask(2, RandomMask((8, 9))),
    "complement": lambda: ComplementMask(MultiBlockMask((8, 9), context_length=5)),
    "union": lambda: UnionMask(MultiBlockMask((8, 9))),
    "V-JEPA": lambda: vjepa_masks((2, 6, 7)),
    "mixture": lambda: MultiContextMask((RandomMask((8, 9)), BlockMask((8, 9)))),
    "nested": lambda: NestedMask((16, 20), MultiBlockMask((4, 5))),
    "causal": lambda: CausalMask((12, 3), context_size_per="sample"),
    "published": lambda: ReferenceMultiBlockMask((14, 14)),
    "published, but for its aspects": lambda: ReferenceMultiBlockMask((14, 14), tied_aspect=False),
}


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


# Tensors made without a device land on "meta", without values, so using them raises.
SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "default device": lambda: torch.device("meta"),
    "float64": lambda: default_type(torch.float64),
    "bfloat16": lambda: default_type(torch.bfloat16),
}
around = pytest.mark.parametrize("surroundings", SURROUNDINGS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_unchanged(function: Callable[[], Any], surroundings: str) -> None:
    expected = function()
    with SURROUNDINGS[surroundings]():
        found = function()
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, Tensor):
            assert ours.dtype == theirs.dtype and ours.device == theirs.device
            assert torch.equal(ours, theirs)
        else:
            assert ours == theirs


@around
@pytest.mark.parametrize("name", SAMPLERS)
def test_masks(name, surroundings):
    """Traps: other masks with another default type; draws of bfloat16, of which there are 256, so
    that ties fall to the first tokens; masks that are made on an accelerator first."""

    def drawn() -> list[Tensor]:
        made = SAMPLERS[name]()(3, generator=seeded())
        several = made if isinstance(made, list) else [made]
        sets = [tokens for masks in several for tokens in (masks.context, masks.targets)]
        return [tensor for tokens in sets for tensor in (tokens.idx, tokens.valid)]

    assert_unchanged(drawn, surroundings)


@around
def test_masks_of_a_collator_and_their_audit(surroundings):
    images = IndexedDataset(torch.zeros(4, 1))
    items = [images[EpochIndex(index, 1)] for index in range(4)]

    def drawn() -> Iterator[Any]:
        for sampler in (RandomMask((8, 9)), MultiBlockMask((8, 9), target_size_per="sample")):
            collator = MaskCollator(sampler, seed=3)
            found = audit_masks(sampler, num_batches=2, batch_size=4, generator=seeded())
            yield collator(items)[1].context.idx
            yield found.context_frequency
            yield found.target_sizes

    assert_unchanged(lambda: list(drawn()), surroundings)


@around
def test_data(surroundings):
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=seeded())

    def made() -> list[Any]:
        shapes, _ = textured_shapes(num_train=3, num_test=1)
        floats = PixelStatistics((0.485, 0.4, 0.3), (0.229, 0.2, 0.1))(images)
        crops = random_crops(floats, (0.3, 1.0), flip=True, generator=seeded())
        order = list(ResumableBatches(10, 2, steps=7, seed=0))
        return [*shapes.tensors, floats, crops, order]

    assert_unchanged(made, surroundings)


def test_pictures_of_masks():
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    masks = RandomMask((4, 4))(2, generator=seeded())
    once = plot_masks(images, masks)
    with torch.device("meta"):
        again = plot_masks(images, masks)
    for one, other in zip(once.axes, again.axes, strict=True):
        assert len(one.images) == len(other.images) > 0
        for ours, theirs in zip(other.images, one.images, strict=True):
            assert (ours.get_array() == theirs.get_array()).all()


@pytest.mark.parametrize("surroundings", ["float64", "bfloat16"])
def test_draws_of_losses_and_quantizer(surroundings):
    """Draws do not depend on the default dtype; their device is that of the features."""
    features = torch.randn(40, 6, generator=seeded())

    def drawn() -> list[Tensor]:
        valid, chosen = torch.arange(40) % 3 > 0, torch.ones(5, dtype=torch.bool)
        return [
            sigreg(features, num_slices=8, generator=seeded()),
            gumbel_like(features, seeded()),
            *draw_vectors(features, valid, chosen, seeded(), None),
        ]

    assert_unchanged(drawn, surroundings)


def test_a_teacher_made_in_inference_mode_is_updated_outside():
    student = torch.nn.Linear(3, 3)
    with torch.inference_mode():
        teacher = EMATeacher(student, momentum=0.5)
    before = teacher.module.weight.clone()
    with torch.no_grad():
        student.weight.add_(1)
    teacher.update(student)
    torch.testing.assert_close(teacher.module.weight, before + 0.5)


def test_moving_a_predictor_leaves_the_rest_of_its_positions_alone():
    """Shared memory, that of a teacher that is updated later, and positions of another module."""
    arguments: dict[str, Any] = dict(predictor_embed_dim=16, depth=1, num_heads=2)
    predictor = MaskedPredictor((4, 6), 8, **arguments)
    assert predictor.share_memory().position_table.is_shared()
    teacher = EMATeacher(predictor, momentum=0.5)
    with torch.inference_mode():
        teacher.to("cpu")
    teacher.update(predictor)
    predictor = MaskedPredictor((4, 6), 8, **arguments)
    own = torch.rand_like(predictor.position_table)
    predictor.position_table.copy_(own)
    assert torch.equal(predictor.double().position_table, own.double())
    learned = MaskedPredictor((4, 6), 8, **arguments, position="learned")
    before = learned.position_table.detach().clone()
    assert torch.equal(learned.double().position_table, before.double())


@pytest.mark.parametrize("position", ["sincos", "rope"])
@pytest.mark.parametrize("num_levels", [1, 2])
def test_fixed_positions_survive_where_modules_are_moved(position, num_levels):
    """Traps: a model that is built on the meta device and gets its weights later, but not its
    positions; a model that was cast to half precision and back, and keeps the rounding."""

    def build() -> MaskedPredictor:
        return MaskedPredictor(
            (4, 6), 8, predictor_embed_dim=16, depth=1, num_heads=2, position=position,
            num_levels=num_levels,
        )  # fmt: skip

    expected = build()
    with torch.device("meta"):
        later = build()
        assert later.position_table.is_meta
        later.to_empty(device="cpu")
    later.load_state_dict(expected.state_dict())
    assert torch.equal(later.position_table, expected.position_table)
    again = build().to_empty(device="cpu")
    assert torch.equal(again.position_table, expected.position_table)
    rounded = build().bfloat16()
    assert rounded.position_table.dtype == torch.bfloat16
    assert torch.equal(rounded.float().position_table, expected.position_table)
