"""`EMATeacher`: the exponential moving average of a student."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from jepakit._checks import as_fraction
from jepakit._pairs import Pairs, is_half_precision
from jepakit._wrapped import fsdp_parts, unwrap

__all__ = ["EMATeacher"]


class EMATeacher(nn.Module):
    r"""Exponential moving average of a student, called like it, without gradient.

    $\bar\theta \leftarrow m\,\bar\theta + (1 - m)\,\theta$ for every floating or complex parameter,
    with $m = m(\mathrm{step})$; buffers and integer parameters are copied. The teacher starts as an
    exact copy, never gets a gradient and is always in eval mode. It is kept in float32, also for a
    student in half precision: in bfloat16, an average with momentum 0.999 does not change. With a
    momentum of 1 it is left untouched, whatever the student holds, NaN included.

    Build it after loading pretrained weights, and before sharding the student with FSDP2. Call
    `update` once after each step of the optimiser, which a hook does in every trainer:
    `optimizer.register_step_post_hook(lambda *_: teacher.update(student))`. The state dict holds
    `step`, so a resumed run continues the momentum schedule.

    FSDP2: call `fully_shard` in the same way, with the same blocks and mesh, on the student and on
    `teacher.module`; the roots must be these two, not a parent that holds both. `update` reshards
    both and averages shard by shard, without communication. `state_dict` then gives DTensors, which
    `load_state_dict` loads into a teacher that is sharded the same way; for one whole file, use
    `get_model_state_dict` and `set_model_state_dict` of `torch.distributed.checkpoint.state_dict`
    with `full_state_dict=True`.

    Args:
        student: Any module; wrappers of DDP, `torch.compile` and Lightning's Fabric are removed.
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
        self._pairs: Pairs | None = None  # made by the first update
        # Of the student's parameters at the last update, and whether they ever changed since.
        self._student_versions: list[int] = []
        self._versions_count = False
        self._warned = False
        with torch.inference_mode(False):  # a copy made in inference mode could not be updated
            self.module = copy.deepcopy(unwrap(student)).requires_grad_(False)
            for tensor in (*self.module.parameters(), *self.module.buffers()):
                if is_half_precision(tensor):
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

    def update(self, student: nn.Module) -> None:
        """Move towards the `student`, wrapped or not, by one step, then count the step.

        Raises:
            FloatingPointError: If a parameter of the student is NaN or infinite; buffers are copied
                whatever they hold. On the CPU the teacher stays as it was. On CUDA a check at once
                would wait for the GPU, so the error comes an update or two later, when only a
                checkpoint has the teacher. On other devices nothing is checked.
            TypeError: If the teacher was cast to half precision.
            ValueError: If student and teacher differ in names, shapes or sharding, for example
                because only one was resized; `jepakit.optim.set_image_size` resizes both.

        Warns:
            UserWarning: If it is called for each micro-batch: the student has gradients, and its
                parameters did not change since the last update. Steps of a fused optimiser are not
                seen to change them, so with one there is no warning.

        Names and shapes are compared by the first update, and again when a module, a parameter or a
        buffer was replaced or moved.
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
        if self._pairs is None or not self._pairs.still_hold(self.module, student):
            self._pairs = Pairs(self.module, student, before=self._pairs)
        self._warn_of_micro_batches(self._pairs)
        if momentum < 1:  # not `lerp` with weight 0, since 0 * NaN is NaN
            self._pairs.average(1.0 - momentum)
        self.step += 1

    def _warn_of_micro_batches(self, pairs: Pairs) -> None:
        if self._warned:
            return
        versions = pairs.student_versions()
        if versions != self._student_versions:
            # A fused optimiser leaves them as they are, so they count once they have changed.
            self._versions_count = bool(self._student_versions)
            self._student_versions = versions
        elif self._versions_count and pairs.student_has_gradients():
            self._warned = True
            warnings.warn(
                "EMATeacher.update: the student has gradients, and its parameters did not change "
                "since the last update; call update once after each step of the optimiser, not "
                "for each micro-batch",
                stacklevel=3,
            )

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
