"""`EMATeacher`: the moving average of a student."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._checks import check_fraction

__all__ = ["EMATeacher"]


class EMATeacher(nn.Module):
    r"""The exponential moving average of a student, called like it, without gradient.

    $\bar\theta \leftarrow m\,\bar\theta + (1 - m)\,\theta$ for every floating parameter, with
    $m = m(\mathrm{step})$; buffers and integer tensors are copied. The teacher starts as an exact
    copy, is kept in float32 (half types are raised; an average in bfloat16 at momentum 0.999 stands
    still), never gets a gradient and is always in eval mode, whatever its parent is set to.

    Build it before wrapping the student in FSDP or DDP, and after loading pretrained weights. Call
    `update` once for each optimiser step, after it. The state dict holds `step`, so a resumed run
    goes on where it was.

    Args:
        student: Any module; DDP and `torch.compile` wrappers are looked through.
        momentum: Fraction of the old teacher that is kept: 1 freezes, 0 copies. A number, or a
            schedule `step -> number`.

    Raises:
        TypeError: If `student` is no module or `momentum` neither number nor callable.
        ValueError: If a momentum is not in [0, 1].

    Example:
        >>> import torch
        >>> from jepakit import EMATeacher, linear
        >>> student = torch.nn.Linear(4, 4)
        >>> teacher = EMATeacher(student, momentum=linear(0.996, 1.0, steps=100))
        >>> torch.equal(teacher(torch.ones(1, 4)), student(torch.ones(1, 4)))
        True
        >>> teacher.update(student)
        >>> teacher.step
        1

    Source:
        Tarvainen and Valpola, Mean Teacher (arXiv:1703.01780); linear momentum 0.996 to 1 as in
        I-JEPA (arXiv:2301.08243). Differences: buffers are copied, names must match, and the step
        belongs to the state.
    """

    def __init__(self, student: nn.Module, momentum: float | Callable[[int], float]) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student={type(student).__name__}: must be a torch.nn.Module")
        if not callable(momentum):
            check_fraction("momentum", momentum)
        self._schedule = momentum
        self.step = 0
        self.module = copy.deepcopy(_unwrap(student)).requires_grad_(False)
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
        self.eval()

    @property
    def momentum(self) -> float:
        """The momentum that the next update uses."""
        if not callable(self._schedule):
            return float(self._schedule)
        value = self._schedule(self.step)
        check_fraction(f"momentum schedule at step {self.step}", value)
        return float(value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the averaged student gives, without gradient.

        Args:
            args: The student's arguments.
            kwargs: The student's arguments by name.
        """
        with torch.no_grad():
            return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards the student by one step, with `momentum`, then count the step.

        Args:
            student: The module that the teacher was built from, wrapped or not.

        Raises:
            ValueError: If the student has a name or a shape that the teacher has not, or lacks one.
        """
        momentum = self.momentum
        student = _unwrap(student)
        ours, theirs = _tensors(self.module), _tensors(student)
        _check_names(ours, theirs)
        parameters = {_clean(name) for name, _ in self.module.named_parameters()}
        averages: list[Tensor] = []
        sources: list[Tensor] = []
        for name, mine in ours.items():
            source = theirs[name].detach()
            if name in parameters and mine.is_floating_point():
                averages.append(mine)
                # One fused call below, which takes no mixed types.
                sources.append(source.to(device=mine.device, dtype=mine.dtype))
            else:
                mine.copy_(source)
        if averages:
            torch._foreach_lerp_(averages, sources, 1.0 - momentum)
        self.step += 1

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in eval mode: drop-path or dropout in a teacher would make its targets random.

        Args:
            mode: Ignored, since a parent's `train()` passes it to every child.
        """
        return super().train(False)

    def get_extra_state(self) -> dict[str, int]:
        """The number of updates, saved with the state dict."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take the number of updates from a state dict.

        Args:
            state: What `get_extra_state` gave.
        """
        self.step = int(state["step"])

    def extra_repr(self) -> str:
        """Momentum and step."""
        return f"momentum={self._schedule!r}, step={self.step}"


def _unwrap(module: nn.Module) -> nn.Module:
    while True:
        inner = getattr(module, "_orig_mod", None)  # torch.compile
        if inner is None and isinstance(
            module, nn.parallel.DistributedDataParallel | nn.DataParallel
        ):
            inner = module.module
        if inner is None:
            return module
        module = inner


def _clean(name: str) -> str:
    # A compiled submodule puts this in the middle of a name.
    return name.replace("_orig_mod.", "")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    found = (*module.named_parameters(), *module.named_buffers())
    return {_clean(name): tensor for name, tensor in found}


def _check_names(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    missing = sorted(ours.keys() - theirs.keys())
    extra = sorted(theirs.keys() - ours.keys())
    if missing or extra:
        raise ValueError(
            f"student: must have the names that the teacher was built from, but lacks "
            f"{missing[:5] or 'none'} and adds {extra[:5] or 'none'} "
            f"({len(missing)} missing, {len(extra)} extra)"
        )
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            raise ValueError(
                f"student: {name} has shape {tuple(theirs[name].shape)}, the teacher "
                f"{tuple(tensor.shape)}; they must be equal"
            )
