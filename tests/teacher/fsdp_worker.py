"""One rank of test_teacher_sharded.py: `python fsdp_worker.py RANK WORLD_SIZE STORE`."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from tests.ranks import joined
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard

from jepakit import EMATeacher, linear

STEPS = 4
SCHEDULE = linear(0.3, 0.9, steps=STEPS)


class Student(nn.Module):
    """The last layer has one row: of two ranks, one holds nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 6), nn.Linear(6, 4)])
        self.last = nn.Linear(4, 1)
        self.register_buffer("index", torch.tensor([7, 3]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return self.last(x)


def student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student().double()


def root_alone(module: nn.Module) -> None:
    fully_shard(module, mesh=MESH)


def with_blocks(module: nn.Module) -> None:
    for block in module.blocks:
        fully_shard(block, mesh=MESH)
    fully_shard(module, mesh=MESH)


def kept_whole(module: nn.Module) -> None:
    """The parameters stay whole after the backward too, and those of before the step."""
    with_blocks(module)
    module.set_reshard_after_backward(False)


def pair(shard: Callable[[nn.Module], None], seed: int = 0) -> tuple[nn.Module, EMATeacher]:
    module = student(seed)
    teacher = EMATeacher(module, SCHEDULE)
    shard(module)
    shard(teacher.module)
    return module, teacher


def batch(step: int) -> Tensor:
    random = torch.Generator().manual_seed(step)
    return torch.randn(4, 3, generator=random, dtype=torch.float64)


def train(module: nn.Module, teacher: EMATeacher, steps: range, part: slice) -> list[Tensor]:
    """The documented order; the teacher's outputs at every step, and after the last."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    outputs = []
    for step in steps:
        x = batch(step)
        target = teacher(x)
        outputs.append(target)
        loss = (module(x[part]) - target[part] - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        module.index.add_(1)
        teacher.update(module)
    return [*outputs, teacher(batch(0))]


def mine() -> slice:
    """The part of the batch that this rank trains on."""
    rows = len(batch(0)) // dist.get_world_size()
    return slice(rows * dist.get_rank(), rows * (dist.get_rank() + 1))


def whole(module: nn.Module) -> dict[str, Tensor]:
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def reference() -> tuple[list[Tensor], dict[str, Tensor]]:
    module = student()
    teacher = EMATeacher(module, SCHEDULE)
    outputs = train(module, teacher, range(STEPS), slice(None))
    return outputs, teacher.module.state_dict()


def check_equals_the_unsharded(shard: Callable[[nn.Module], None]) -> None:
    expected, state = reference()
    assert not torch.allclose(expected[-1], student()(batch(0)), atol=0.01)
    module, teacher = pair(shard)
    torch.testing.assert_close(train(module, teacher, range(STEPS), mine()), expected)
    assert teacher.step == STEPS
    torch.testing.assert_close(whole(teacher.module), state)


def check_teacher_as_root() -> None:
    """`fully_shard(teacher)` shards its parameters as `fully_shard(teacher.module)` does."""
    expected, _ = reference()
    module = student()
    teacher = EMATeacher(module, SCHEDULE)
    fully_shard(module, mesh=MESH)
    fully_shard(teacher, mesh=MESH)
    torch.testing.assert_close(train(module, teacher, range(STEPS), mine()), expected)


def check_half_compute() -> None:
    """With bfloat16 as the type to compute in, what is averaged is float32 still."""
    module = student().float()
    teacher = EMATeacher(module, 0.999)
    before = {name: tensor.clone() for name, tensor in teacher.module.state_dict().items()}
    for part in (module, teacher.module):
        fully_shard(part, mesh=MESH, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    teacher(batch(0).float())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)
    teacher.update(module)
    for name, tensor in whole(teacher.module).items():
        if name != "index":
            torch.testing.assert_close(tensor, before[name] + 1e-5, rtol=0, atol=1e-7)
            assert not torch.equal(tensor, before[name])


def check_any_moment() -> None:
    """The student is read rightly wherever it stands, and its graph is not disturbed."""
    gradients = []
    for early in (False, True):
        module, teacher = pair(with_blocks)
        loss = (module(batch(0)) - teacher(batch(0)) - 1).square().mean()
        if early:
            teacher.update(module)
        loss.backward()
        gradients.append([parameter.grad.full_tensor() for parameter in module.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)

    module, teacher = pair(with_blocks)
    with torch.no_grad():
        module(batch(0))
    teacher.update(module)
    torch.testing.assert_close(whole(teacher.module), whole(module))


def nothing(module: nn.Module) -> None:
    pass


def by_columns(module: nn.Module) -> None:
    fully_shard(module, mesh=MESH, shard_placement_fn=lambda p: Shard(int(p.shape == (4, 6))))


def check_errors() -> None:
    for ours, theirs in [(root_alone, nothing), (nothing, root_alone), (root_alone, by_columns)]:
        module = student()
        teacher = EMATeacher(module, SCHEDULE)
        ours(module)
        theirs(teacher.module)
        with pytest.raises(ValueError, match=r"student: .* sharded as .* in the same way"):
            teacher.update(module)
        assert teacher.step == 0
    with pytest.raises(ValueError, match=r"student: is already sharded .* build the teacher first"):
        EMATeacher(module, SCHEDULE)


def check_resumed() -> None:
    """Shards into shards, and one whole state dict into shards: both go on where the first was."""
    expected, _ = reference()
    for full in (False, True):
        module, teacher = pair(with_blocks)
        train(module, teacher, range(2), mine())
        if full:
            options = StateDictOptions(full_state_dict=True)
            states = [get_model_state_dict(part, options=options) for part in (module, teacher)]
        else:
            states = [module.state_dict(), teacher.state_dict()]
        second, other = pair(with_blocks, seed=1)
        for part, state in zip((second, other), states, strict=True):
            if full:
                set_model_state_dict(part, state, options=options)
            else:
                part.load_state_dict(state)
        assert other.step == 2
        outputs = train(second, other, range(2, STEPS), mine())
        torch.testing.assert_close(outputs, expected[2:])


def main(rank: int, world_size: int) -> None:
    global MESH
    MESH = init_device_mesh("cpu", (world_size,))
    for shard in (root_alone, with_blocks, kept_whole):
        check_equals_the_unsharded(shard)
    check_teacher_as_root()
    check_half_compute()
    check_any_moment()
    check_errors()
    check_resumed()


if __name__ == "__main__":
    with joined() as ranks:
        main(*ranks)
