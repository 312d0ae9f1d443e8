"""`EMATeacher`: the moving average of a student."""

import copy
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from jepakit._checks import check_fraction
from jepakit._wrapped import clean_names, fsdp_parts, loaded_type, unwrap

__all__ = ["EMATeacher"]

# What is floating or complex and less precise than float32, the types of eight bits too.
_HALF = frozenset(
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
    and (dtype.is_floating_point or dtype.is_complex)
    and dtype.itemsize < (torch.complex64 if dtype.is_complex else torch.float32).itemsize
)


class EMATeacher(nn.Module):
    r"""The exponential moving average of a student, called like it, without gradient.

    $\bar\theta \leftarrow m\,\bar\theta + (1 - m)\,\theta$ for every floating or complex parameter,
    with $m = m(\mathrm{step})$; buffers and integer tensors are copied. The teacher starts as an
    exact copy, is kept in float32 (half types are raised; an average in bfloat16 at momentum 0.999
    stands still), never gets a gradient and is always in eval mode, whatever its parent is set to.

    Build it after loading pretrained weights, and before sharding the student with FSDP2. Call
    `update` once for each optimiser step, after it. The state dict holds `step`, so a resumed run
    goes on where it was.

    FSDP2: build the teacher first, then call `fully_shard` in the same way, with the same blocks
    and the same mesh, on the student and on `teacher.module`; the roots must be these two, not a
    parent that holds both. `update` reshards both and averages shard by shard, without
    communication. `state_dict` then gives DTensors, which `load_state_dict` takes back into a
    teacher that is sharded the same way; for one whole file, use `get_model_state_dict` and
    `set_model_state_dict` of `torch.distributed.checkpoint.state_dict` with `full_state_dict=True`.

    Args:
        student: Any module; DDP and `torch.compile` wrappers are looked through.
        momentum: Fraction of the old teacher that is kept: 1 freezes, 0 copies. A number, or a
            schedule `step -> number`.

    Raises:
        TypeError: If `student` is no module or `momentum` neither number nor callable.
        ValueError: If a momentum is not in [0, 1], or the student is already sharded.

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
            momentum = _fraction("momentum", momentum)
        if fsdp_parts(student):
            raise ValueError(
                "student: is already sharded by fully_shard and cannot be copied; build the "
                "teacher first, then shard the student and teacher.module the same way"
            )
        self._schedule = momentum
        self.step = 0
        with torch.inference_mode(False):  # a copy made in it could not be updated later
            self.module = copy.deepcopy(unwrap(student)).requires_grad_(False)
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                if tensor.dtype in _HALF:
                    tensor.data = tensor.data.to(
                        torch.complex64 if tensor.is_complex() else torch.float32
                    )
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
            # From a property of a module it would end as "no attribute 'momentum'".
            raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error
        return _fraction(name, value)

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
            TypeError: If `student` is no module, or the teacher was made a half type.
            ValueError: If the student has a name or a shape that the teacher has not, or lacks one,
                or one of the two is sharded in another way.
        """
        if not isinstance(student, nn.Module):
            raise TypeError(
                f"student={type(student).__name__}: must be a torch.nn.Module, the one that the "
                "teacher was built from, not its state dict"
            )
        momentum = self.momentum
        student = unwrap(student)
        # After a forward without backward the root of FSDP2 still shows its whole parameters. What
        # is written to those is lost at the next gathering, and those of the student can be old.
        for part in (*fsdp_parts(self), *fsdp_parts(student)):
            part.reshard()
        parameters = clean_names(self.module.named_parameters())
        ours = parameters | clean_names(self.module.named_buffers())
        theirs = clean_names(student.named_parameters()) | clean_names(student.named_buffers())
        _check_names(ours, theirs)
        _check_precision(parameters)
        sharded = _check_shards(ours, theirs)
        averages: list[Tensor] = []
        sources: list[Tensor] = []
        for name, mine in ours.items():
            source = theirs[name].detach()
            if name in sharded:
                mine, source = mine.to_local(), source.to_local()
            if name in parameters and (mine.is_floating_point() or mine.is_complex()):
                # One fused call below, which takes no mixed types.
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


def _fraction(name: str, value: Any) -> float:
    # A schedule written with numpy gives numbers that are no float.
    if isinstance(value, Real) and not isinstance(value, bool):
        value = float(value)
    check_fraction(name, value)
    return float(value)


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


def _check_precision(parameters: dict[str, Tensor]) -> None:
    if _HALF.isdisjoint({tensor.dtype for tensor in parameters.values()}):
        return
    name, dtype = next((n, t.dtype) for n, t in parameters.items() if t.dtype in _HALF)
    raise TypeError(
        f"teacher: parameter {name} is {dtype}; the average is kept in float32, since in a half "
        "type it stands still at a momentum near 1. Leave the teacher out of .bfloat16(), .half() "
        "and load_state_dict(assign=True), and use autocast"
    )


def _check_shards(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """The names of what is sharded; raises where the two are not sharded the same way."""
    kinds = loaded_type("torch.distributed.tensor", "DTensor")
    found = {type(tensor) for tensor in (*ours.values(), *theirs.values())}
    found = {kind for kind in found if issubclass(kind, kinds)}
    if not found:
        return set()

    def layout(tensor: Any) -> tuple[Any, ...]:
        return (tensor.placements, tensor.device_mesh) if type(tensor) in found else ()

    sharded = set()
    for name, mine in ours.items():
        here, there = layout(mine), layout(theirs[name])
        if here != there:
            raise ValueError(
                f"student: {name} is sharded as {there or 'none'}, the teacher's as "
                f"{here or 'none'}; call fully_shard on the student and on teacher.module in the "
                "same way, with the same blocks and mesh, and on these two, not on a parent"
            )
        if here:
            sharded.add(name)
    return sharded
