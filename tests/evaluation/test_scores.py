"""evaluate: the three parts, on the same images."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from jepakit.diagnostics import effective_rank
from jepakit.evaluation import evaluate, extract_features, knn_accuracy, linear_probe


@pytest.fixture
def sets() -> tuple[TensorDataset, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (90, 40):
        labels = torch.randint(3, (count,), generator=generator)
        noise = torch.randn(count, 5, generator=generator)
        parts.append(TensorDataset(torch.eye(5)[labels] * 2 + noise, labels))
    return parts[0], parts[1]


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # said for the parts alone
def test_is_its_parts(sets, monkeypatch):
    probe = {}

    def record(train, test, **options):
        probe.update(options)
        return linear_probe(train, test, **options)

    monkeypatch.setattr("jepakit.evaluation.scores.linear_probe", record)
    scores = evaluate(torch.nn.Identity(), *sets, k=7, num_images=60)
    seen: list[list[int]] = []
    count = torch.arange(90).unsqueeze(1)
    numbered = TensorDataset(count.float(), sets[0].tensors[1])
    evaluate(
        lambda rows: seen.append(rows.flatten().int().tolist()) or rows,
        numbered,
        numbered,
        num_images=60,
        batch_size=60,
    )
    chosen = seen[0]
    assert len(set(chosen)) == 60 and chosen == sorted(chosen) == seen[1]
    few = [TensorDataset(*(tensor[chosen] for tensor in sets[0].tensors)), sets[1]]
    rows = [extract_features(torch.nn.Identity(), DataLoader(part, 60)) for part in few]
    assert scores.knn == knn_accuracy(*rows, k=7)
    assert scores.linear == linear_probe(*rows, **probe)
    assert probe == {"C": tuple(10.0**power for power in range(-5, 6)), "max_iter": 200}
    assert scores.rank == effective_rank(rows[0].x).item()
    assert scores.std == pytest.approx(rows[0].x.std(0, correction=0).mean().item())


def test_a_few_rows_of_each_class_are_enough_to_choose():
    """Quick looks at 40 images of 10 classes are common; no class need have a fifth."""
    labels = torch.cat([torch.arange(10).repeat(4), torch.tensor([3])])
    few = TensorDataset(torch.eye(10)[labels] + 0.1 * torch.randn(41, 10), labels)
    assert evaluate(torch.nn.Identity(), few, few, k=4).linear > 0.5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_look_at_the_scores_changes_no_training(sets, num_workers):
    """Law 15. Trap: a loader draws a seed for its workers from torch's own generator."""
    state = torch.get_rng_state()
    evaluate(torch.nn.Identity(), *sets, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_change_nothing(sets):
    once, again = (evaluate(torch.nn.Identity(), *sets, batch_size=size) for size in (7, 1000))
    assert once == again


@pytest.mark.parametrize("labels", [torch.arange(10).repeat_interleave(50), torch.arange(500) % 10])
def test_a_few_images_are_of_all_classes(labels):
    """Trap: a folder's first images are of its first classes; in a set that goes round the
    classes, every tenth image is of one."""
    folder = TensorDataset(torch.eye(10)[labels], labels)
    seen = []

    def encode(batch):
        seen.append(batch.argmax(dim=1))
        return batch

    scores = evaluate(encode, folder, folder, num_images=100, k=5)
    counts = torch.cat(seen).bincount(minlength=10)
    assert counts.sum() == 200
    assert counts.min() >= 8
    assert (scores.knn, scores.linear) == (1.0, 1.0)


def test_labels_that_nothing_was_trained_on_raise(sets):
    """Trap: two folders whose classes are numbered differently have an accuracy of 0."""
    train, test = sets
    other = TensorDataset(test.tensors[0], test.tensors[1] + 7)
    with pytest.raises(ValueError, match=r"test: must share classes with train, got labels like"):
        evaluate(torch.nn.Identity(), train, other)
    # One class more is no such mistake: few images need not hold all.
    more = TensorDataset(test.tensors[0], test.tensors[1] + 1)
    assert evaluate(torch.nn.Identity(), train, more).knn < 0.7


def test_images_are_prepared_and_the_model_is_judged_as_it_is_used():
    """Trap: a lambda around a model that is in training mode, so that it drops at random."""
    labels = torch.arange(60) % 3
    images = (40 * torch.eye(3)[labels]).to(torch.uint8)
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Identity())
    stored = TensorDataset(images, labels)
    once, again = (
        evaluate(model, stored, stored, prepare=lambda x: x.float() / 255) for _ in range(2)
    )
    assert once == again == evaluate(lambda x: x.float() / 255, stored, stored)
    assert model.training
    dropping = torch.nn.Dropout(0.5)
    assert once == evaluate(
        torch.nn.Identity(),
        TensorDataset(images.float() / 255, labels),
        TensorDataset(images.float() / 255, labels),
        prepare=dropping,
    )
    assert dropping.training


def test_bad_numbers_raise(sets):
    with pytest.raises(ValueError, match="num_images=0: must be at least 1"):
        evaluate(torch.nn.Identity(), *sets, num_images=0)
    with pytest.raises(ValueError, match="k=91"):
        evaluate(torch.nn.Identity(), *sets, k=91)
