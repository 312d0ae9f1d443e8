"""A student with every kind of tensor, its steps, and how tensors are compared."""

import torch
from torch import Tensor, nn


class Student(nn.Module):
    """Every kind of tensor that a module can hold."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(drop)
        self.second = nn.Linear(4, 2)
        self.register_buffer("index", torch.tensor([7, 3, 5]))
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("fleeting", torch.tensor([0.5]), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.norm(self.first(x))).relu()) * self.scale


def student(seed: int = 0, **arguments: float) -> Student:
    torch.manual_seed(seed)
    module = Student(**arguments)
    perturb(module)
    return module


def perturb(module: nn.Module) -> None:
    """A stand-in for an optimiser step, over every kind of tensor."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
            elif buffer.dtype == torch.int64:
                buffer.add_(1)
            else:
                buffer.logical_not_()


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in (*module.named_parameters(), *module.named_buffers())}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name
