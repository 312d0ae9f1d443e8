"""The relational loss: invariances, sets of their own, and that collapse is not its minimum."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit.losses import relational_loss


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 2**31))
def test_scale_shift_and_rotation_do_not_matter(scale: float, seed: int) -> None:
    """So nothing is gained by shrinking."""
    random = torch.Generator().manual_seed(seed)
    teacher = torch.randn(5, 3, generator=random, dtype=torch.float64)
    student = torch.randn(5, 4, generator=random, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=random, dtype=torch.float64))[0]
    expected = relational_loss(student, teacher)
    moved = scale * (student @ rotation) + 3 * scale
    torch.testing.assert_close(relational_loss(moved, teacher), expected)
    torch.testing.assert_close(relational_loss(student, scale * teacher), expected)
    torch.testing.assert_close(
        relational_loss(scale * teacher, teacher), torch.tensor(0.0, dtype=torch.float64)
    )


@given(n=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_collapse_is_not_the_minimum(n: int, seed: int) -> None:
    """Law 11. Trap: squared distances whose minimum is collapse. It costs 1/2 at least."""
    random = torch.Generator().manual_seed(seed)
    teacher = torch.randn(n, 3, generator=random)
    student = torch.ones(n, 4, requires_grad=True)
    value = relational_loss(student, teacher)
    value.backward()
    assert value >= 0.5 - 1e-6
    assert not student.grad.any()  # by symmetry, and not NaN
    near = 1 + 1e-3 * torch.randn(n, 4, generator=random)
    near.requires_grad_()
    relational_loss(near, teacher).backward()
    assert near.grad.isfinite().all()
    assert n == 2 or near.grad.norm() > 0.1


def test_pairs_that_do_not_exist_do_not_count() -> None:
    """Trap: an average over pairs that do not exist. Each set has its own scale."""
    student, teacher = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    counts = [4, 1, 3]
    valid = torch.arange(4) < torch.tensor(counts)[:, None]
    parts = [
        (relational_loss(s[:n], t[:n]) * n * (n - 1) / 2, n * (n - 1) / 2)
        for s, t, n in zip(student, teacher, counts, strict=True)
        if n > 1
    ]
    expected = sum(p for p, _ in parts) / sum(n for _, n in parts)
    torch.testing.assert_close(relational_loss(student, teacher, valid), expected)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    relational_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        ((3, 4, 2), (1, 4, 2), r"teacher \(1, 4, 2\): must have the shape of student"),
        ((3, 1, 2), (3, 1, 2), r"student \(3, 1, 2\): must have at least 2 rows, got 1"),
    ],
)
@pytest.mark.no_hook
def test_bad_shapes(student: tuple[int, ...], teacher: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        relational_loss(torch.randn(student), torch.randn(teacher))
