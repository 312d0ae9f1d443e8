"""`EMATeacher`: the exponential moving average of a student."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._checks import as_fraction
from jepakit._wrapped import clean_names, fsdp_parts, loaded_type, name_difference, unwrap

__all__ = ["EMATeacher"]


class EMATeacher(nn.Module):
    r"""Exponential moving average of a student, called like it, without gradient.

    $\bar\theta \leftarrow m\,\bar\theta + (1 - m)\,\theta$ for every floating or complex parameter,
    with $m = m(\mathrm{step})$; buffers and integer parameters are copied. The teacher starts as an
    exact copy, never gets a gradient and is always in eval mode. It is kept in float32, also for a
    student in half precision: in bfloat16, an average with momentum 0.999 does not change.

    Build it after loading pretrained weights, and before sharding the student with FSDP2. Call
    `update` after each step of the optimiser. The state dict holds `step`, so a resumed run
    continues the momentum schedule.

    FSDP2: call `fully_shard` in the same way, with the same blocks and mesh, on the student and on
    `teacher.module`; the roots must be these two, not a parent that holds both. `update` reshards
    both and averages shard by shard, without communication. `state_dict` then gives DTensors, which
    `load_state_dict` loads into a teacher that is sharded the same way; for one whole file, use
    `get_model_state_dict` and `set_model_state_dict` of `torch.distributed.checkpoint.state_dict`
    with `full_state_dict=True`.

    Args:
        student: Any module; wrappers of DDP and `torch.compile` are removed.
        momentum: Fraction of the old teacher that is kept: 1 freezes, 0 copies. A number, or a
            schedule `step -> number`.

    Raises:
        ValueError: If the student is already sharded.

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
        I-JEPA (arXiv:2301.08243). Differences: buffers are copied, names must match, and the state
        dict holds the step.
    """

    def __init__(self, student: nn.Module, momentum: float | Callable[[int], float]) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student={type(student).__name__}: must be a torch.nn.Module")
        if not callable(momentum):
            momentum = as_fraction("momentum", momentum)
        if fsdp_parts(student):
            raise ValueError(
                "student: is already sharded and cannot be copied; build the teacher first, then "
                "call fully_shard on the student and on teacher.module"
            )
        self._schedule = momentum
        self.step = 0
        with torch.inference_mode(False):  # a copy made in inference mode could not be updated
            self.module = copy.deepcopy(unwrap(student)).requires_grad_(False)
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                if _is_half_precision(tensor):
                    dtype = torch.complex64 if tensor.is_complex() else torch.float32
                    tensor.data = tensor.data.to(dtype)
        self.eval()

    @property
    def momentum(self) -> float:
        """The momentum that the next update uses."""
        if not callable(self._schedule):
            return self._schedule
        name = f"momentum schedule at step {self.step}"
        try:
            value = self._schedule(self.step)
        except AttributeError as error:
            # From a property, nn.Module would report it as "no attribute 'momentum'".
            raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error
        return as_fraction(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the averaged student with its `args` and `kwargs`, without gradient."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards the `student`, wrapped or not, by one step, then count the step.

        Raises:
            TypeError: If the teacher was cast to half precision.
            ValueError: If student and teacher differ in names, shapes or sharding.
        """
        if not isinstance(student, nn.Module):
            kind = type(student).__name__
            raise TypeError(f"student={kind}: must be a torch.nn.Module, not its state dict")
        momentum = self.momentum
        student = unwrap(student)
        # After a forward without backward, FSDP2 leaves the root's parameters gathered. Writes to
        # gathered parameters are lost at the next gathering, and the student's can be outdated.
        for part in (*fsdp_parts(self), *fsdp_parts(student)):
            part.reshard()
        parameters = clean_names(self.module.named_parameters())
        ours = parameters | clean_names(self.module.named_buffers())
        theirs = clean_names(student.named_parameters()) | clean_names(student.named_buffers())
        _check_names(ours, theirs)
        _check_precision(parameters)
        sharded = _sharded_names(ours, theirs)
        averages, sources = [], []
        for name, mine in ours.items():
            source = theirs[name].detach()
            if name in sharded:
                mine, source = mine.to_local(), source.to_local()
            if name in parameters and (mine.is_floating_point() or mine.is_complex()):
                # For the one fused call below, which needs equal real dtypes.
                source = source.to(device=mine.device, dtype=mine.dtype)
                if mine.is_complex():
                    mine, source = torch.view_as_real(mine), torch.view_as_real(source)
                averages.append(mine)
                sources.append(source)
            else:
                mine.copy_(source)
        if averages:
            torch._foreach_lerp_(averages, sources, 1.0 - momentum)
        self.step += 1

    def train(self, mode: bool = True) -> "EMATeacher":
        """Stay in eval mode whatever the `mode`: a parent's `train()` reaches every child."""
        return super().train(False)

    def get_extra_state(self) -> dict[str, int]:
        """The number of updates, saved with the state dict."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take the number of updates from `state`, the result of `get_extra_state`."""
        self.step = int(state["step"])

    def extra_repr(self) -> str:
        """Momentum and step."""
        return f"momentum={self._schedule!r}, step={self.step}"


def _is_half_precision(tensor: Tensor) -> bool:
    """True for floating and complex tensors less precise than float32, eight bits included."""
    inexact = tensor.is_floating_point() or tensor.is_complex()
    return inexact and tensor.dtype.to_real().itemsize < torch.float32.itemsize


def _check_names(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    if difference := name_difference(ours.keys(), theirs.keys()):
        raise ValueError(f"student: must have the names of the teacher's module, but {difference}")
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            actual, expected = tuple(theirs[name].shape), tuple(tensor.shape)
            raise ValueError(f"student: {name} has shape {actual}: must be {expected}")


def _check_precision(parameters: dict[str, Tensor]) -> None:
    for name, tensor in parameters.items():
        if _is_half_precision(tensor):
            raise TypeError(
                f"teacher: parameter {name} is {tensor.dtype}; the average is kept in float32, "
                "since in half precision it does not change at a momentum near 1; use autocast"
            )


def _sharded_names(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """Return the names of sharded tensors; raise unless both are sharded in the same way."""
    dtensor = loaded_type("torch.distributed.tensor", "DTensor")

    def sharding(tensor: Any) -> tuple[Any, ...] | None:
        is_sharded = issubclass(type(tensor), dtensor)
        return (tensor.placements, tensor.device_mesh) if is_sharded else None

    sharded = set()
    for name, mine in ours.items():
        expected, actual = sharding(mine), sharding(theirs[name])
        if expected != actual:
            raise ValueError(
                f"student: {name} is sharded as {actual or 'none'}, the teacher's as "
                f"{expected or 'none'}; call fully_shard on it and teacher.module in the same way"
            )
        if expected:
            sharded.add(name)
    return sharded
