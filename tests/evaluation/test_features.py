"""`extract_features`: rows in order, modes put back, and errors that name the batch."""

import functools
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from jepakit import MaskedViT, TokenSet, mean_tokens, take_tokens
from jepakit.evaluation import Features, evaluate, extract_features


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(torch.rand(n, 3, 4, 4), torch.arange(n)) for n in (4, 4, 2)]


def pool(images: Tensor) -> Tensor:
    return images.mean(dim=(2, 3))


class Encoder(nn.Module):
    """Random in train mode, with a part that is frozen in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Dropout(0.5)
        self.dropout = nn.Dropout(0.5)
        self.train()
        self.frozen.eval()
        self.seen: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(self.training or self.dropout.training or torch.is_grad_enabled())
        return self.frozen(self.dropout(pool(images)))

    def extract_features(self, images: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self(images)


def test_rows_stay_in_order() -> None:
    """Trap: features pooled over the wrong axis mix images."""
    features = extract_features(pool, batches())
    assert torch.equal(features.x, torch.cat([pool(images) for images, _ in batches()]))
    assert torch.equal(features.y, torch.cat([labels for _, labels in batches()]))
    assert len(features) == 10


@pytest.mark.parametrize("way", ["module", "method", "partial"])
def test_eval_mode_meanwhile_and_every_mode_back(way: str) -> None:
    """Law 15. Trap: a probe that leaves the model in another state, or evaluates with dropout."""
    encoder = Encoder()
    encode = {
        "module": encoder,
        "method": encoder.extract_features,
        "partial": functools.partial(encoder.extract_features, scale=1.0),
    }[way]
    features = extract_features(encode, batches())
    assert torch.equal(features.x, torch.cat([pool(images) for images, _ in batches()]))
    assert encoder.seen == [False] * 3
    assert (encoder.training, encoder.dropout.training, encoder.frozen.training) == (
        True,
        True,
        False,
    )


def test_modes_come_back_after_an_error() -> None:
    """Law 15."""
    encoder = Encoder()
    with pytest.raises(ValueError, match="batch 0"):
        extract_features(encoder, [(torch.full((2, 3, 4, 4), torch.nan), torch.arange(2))])
    assert encoder.training
    assert encoder.dropout.training


def test_parameters_are_left_alone() -> None:
    """Law 15. Trap: a linear probe that leaves the user's model frozen."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    features = extract_features(encoder, batches())
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())
    assert not features.x.requires_grad


def test_half_precision_becomes_float32_and_labels_int64() -> None:
    loader = [(images.bfloat16(), labels.to(torch.uint8)) for images, labels in batches()]
    features = extract_features(pool, loader)
    assert (features.x.dtype, features.y.dtype) == (torch.float32, torch.int64)


def test_device_moves_the_images() -> None:
    seen = []

    def encode(images: Tensor) -> Tensor:
        seen.append(images.device.type)
        return torch.zeros(len(images), 2)

    extract_features(encode, batches(), device="meta")
    extract_features(encode, batches())
    assert seen == ["meta"] * 3 + ["cpu"] * 3


IMAGES, LABELS = torch.rand(4, 3, 4, 4), torch.arange(4)


@pytest.mark.parametrize(
    ("encode", "loader", "error", "text"),
    [
        (pool, [], ValueError, "loader: must yield at least one batch, got none"),
        (
            pool,
            [IMAGES],
            TypeError,
            "must yield pairs of tensors (images, labels), not batch 0",
        ),
        (
            pool,
            [(IMAGES, LABELS, LABELS)],
            TypeError,
            "must yield pairs of tensors (images, labels), not batch 0",
        ),
        (
            pool,
            [(IMAGES, LABELS), (IMAGES, [0, 1, 2, 3])],
            TypeError,
            "must yield pairs of tensors (images, labels), not batch 1",
        ),
        (
            pool,
            [(IMAGES, LABELS.float())],
            TypeError,
            "labels must be integers, batch 0 has torch.float32",
        ),
        (
            pool,
            [(IMAGES, LABELS[:3])],
            ValueError,
            "one for each image, batch 0 has (3,) for images (4, 3, 4, 4)",
        ),
        (
            lambda images: images.flatten(2),
            [(IMAGES, LABELS)],
            ValueError,
            "encode: must return [b, d] with b = 4, got (4, 3, 16) for batch 0; pool patch",
        ),
        (
            lambda images: images.mean(dim=(0, 2)),
            [(IMAGES, LABELS)],
            ValueError,
            "encode: must return [b, d] with b = 4, got (3, 4) for batch 0",
        ),
        (
            lambda images: images.flatten(1),
            [(IMAGES, LABELS), (IMAGES[..., :2], LABELS)],
            ValueError,
            "encode: must return [48] for every image, got (4, 24) for batch 1",
        ),
        (
            lambda images: pool(images) / 0,
            [(IMAGES, LABELS)],
            ValueError,
            "encode: returned NaN or infinity for batch 0, must be finite",
        ),
    ],
)
def test_bad_input_names_the_batch_and_the_rule(
    encode: Any, loader: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        extract_features(encode, loader)
    assert text in str(caught.value)


@pytest.mark.no_hook
def test_encode_must_return_a_tensor() -> None:
    with pytest.raises(TypeError, match="encode: must return a tensor, got list"):
        extract_features(lambda images: images.tolist(), [(IMAGES, LABELS)])


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("x", "y", "error", "text"),
    [
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "y: must be of an integer type"),
        (
            torch.zeros(2, 3, dtype=torch.int64),
            torch.arange(2),
            TypeError,
            "x: must be floating point, got torch.int64",
        ),
        (
            torch.zeros(2, 3),
            torch.arange(3),
            ValueError,
            "x (2, 3) and y (3,): must have the shapes [n, d] and [n]",
        ),
        (
            torch.zeros(0, 3),
            torch.arange(0),
            ValueError,
            "x (0, 3) and y (0,): must have the shapes",
        ),
        (
            torch.tensor([[0.0], [torch.nan]]),
            torch.arange(2),
            ValueError,
            "x: must be finite, but 1 rows are not, first 1",
        ),
    ],
)
def test_features_are_checked(x: Tensor, y: Tensor, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Features(x=x, y=y)
    assert text in str(caught.value)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (torch.zeros(3, 2), [0, 1, 2], "y: must be a torch.Tensor, got list"),
        ([[0.0], [1.0]], torch.arange(2), "x: must be a torch.Tensor, got list"),
    ],
)
def test_features_of_another_type_raise(x: Any, y: Any, text: str) -> None:
    with pytest.raises(TypeError) as raised:
        Features(x=x, y=y)
    assert str(raised.value) == text


def padded_loader(batch_size: int, *, images: torch.Tensor, valid: torch.Tensor) -> DataLoader:
    dataset = TensorDataset(images, torch.arange(len(images)) % 2, valid)
    return DataLoader(dataset, batch_size=batch_size)


def test_padded_images() -> None:
    """Law 5: a padded image has the features that it has alone, cut to what is there. Trap: the
    padding is seen and pooled."""
    torch.manual_seed(0)
    arguments = {"num_classes": 0, "depth": 1, "embed_dim": 48, "num_heads": 2, "img_size": 64}
    backbone = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **arguments)
    encoder = MaskedViT(backbone)
    images, valid = torch.randn(5, 3, 64, 64), torch.zeros(5, 4, 4, dtype=torch.bool)
    heights = (4, 1, 2, 3, 0)
    for row, height in enumerate(heights):
        valid[row, :height] = True
    loader = partial(padded_loader, images=images, valid=valid.flatten(1))
    features = extract_features(encoder.extract_features, loader(5), grid_size=(4, 4))
    one_by_one = extract_features(encoder.extract_features, loader(1), grid_size=[4, 4])
    torch.testing.assert_close(features.x, one_by_one.x, rtol=1e-4, atol=1e-5)
    assert not features.x[4].any()
    noise = torch.where(valid.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None], images, 9)
    other = padded_loader(5, images=noise, valid=valid.flatten(1))
    again = extract_features(encoder.extract_features, other, grid_size=(4, 4))
    assert torch.equal(again.x, features.x)

    with pytest.raises(TypeError, match=r"must yield pairs .* not batch 0; give the grid_size of"):
        extract_features(encoder.extract_features, loader(5))
    with pytest.raises(TypeError, match=r"must yield three tensors \(images, labels, valid\)"):
        extract_features(
            encoder.extract_features, [(images, torch.zeros(5).long())], grid_size=(4, 4)
        )
    with pytest.raises(ValueError, match=r"valid of batch 0 is \(5, 16\), must be \(5, 20\)"):
        extract_features(encoder.extract_features, loader(5), grid_size=(4, 5))


def test_scores_of_padded_images() -> None:
    """`evaluate` passes validity on: only where data is do the classes differ."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    images = torch.randn(80, 1, 2, 4, generator=generator)
    images[:, 0, 0] = labels[:, None].float()  # the other row is noise
    valid = (torch.arange(8) < 4).expand(80, 8)

    def encode(x: torch.Tensor, context: TokenSet) -> torch.Tensor:
        return mean_tokens(take_tokens(x.flatten(1)[..., None] - 0.5, context), context)

    dataset = TensorDataset(images, labels, valid)
    assert evaluate(encode, dataset, dataset, grid_size=(2, 4), k=3).knn == 1.0
