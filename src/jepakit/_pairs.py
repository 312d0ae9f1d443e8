"""`Pairs`: tensors of two modules by name, checked once and again only after a change."""

import gc
import weakref
from collections.abc import Sequence
from functools import partial
from operator import attrgetter, call, is_
from typing import Any, cast

import torch
from torch import Tensor, nn

from jepakit._wrapped import clean_names, loaded_type, name_difference

_PLAIN = (Tensor, nn.Parameter)


class Pairs:
    """A teacher's tensors and the student's of the same names: what to average, what to copy.

    Raises:
        TypeError: If a parameter of the teacher is in half precision.
        ValueError: If names, shapes or sharding differ.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, before: "Pairs | None" = None
    ) -> None:
        parameters = clean_names(teacher.named_parameters())
        ours = parameters | clean_names(teacher.named_buffers())
        theirs = clean_names(student.named_parameters()) | clean_names(student.named_buffers())
        _check_names(ours, theirs)
        _check_precision(parameters)
        sharded = _sharded_names(ours, theirs)
        # Most parameters go into the fused call as they are; it needs equal real dtypes.
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._converted: list[tuple[Tensor, Tensor]] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        averaged_names, converted_names = [], []
        for name, mine in ours.items():
            source = theirs[name]
            if name not in parameters or not (mine.is_floating_point() or mine.is_complex()):
                self._copied.append((mine, source))
            elif name in sharded or mine.is_complex() or _kind(mine) != _kind(source):
                self._converted.append((mine, source))
                converted_names.append(name)
            else:
                averaged_names.append(name)
                self._averaged[0].append(mine)
                self._averaged[1].append(source)
        self._names = averaged_names + converted_names
        self._one_device = len({ours[name].device for name in self._names}) < 2
        # A result on its way from CUDA, kept over new pairs: sharded tensors need some each step.
        self._finite: tuple[Tensor, Any] | None = None if before is None else before._finite
        # Tensors made in inference mode count no changes; they cannot be trained either.
        self._trained = [theirs[name] for name in parameters if not theirs[name].is_inference()]
        tensors = (*ours.values(), *theirs.values())
        self._snapshots: tuple[Snapshot, ...] = ()
        if all(type(tensor) in _PLAIN and tensor.layout == torch.strided for tensor in tensors):
            self._snapshots = (Snapshot(teacher), Snapshot(student))
        # A student without other references is freed. The callback must not refer to this object,
        # or the teacher's memory would wait for the garbage collector.
        held: list[list[Any]] = [*self._averaged, self._converted, self._copied, self._trained]
        held += [each for snapshot in self._snapshots for each in snapshot.held]
        self._student = weakref.ref(student, partial(_clear, held))

    def still_hold(self, teacher: nn.Module, student: nn.Module) -> bool:
        """True if nothing was replaced in either module; always False for sharded ones."""
        modules = (teacher, student)
        return len(self._snapshots) == 2 and all(map(Snapshot.holds, self._snapshots, modules))

    def student_versions(self) -> list[int]:
        """Return how often each parameter of the student was changed in place."""
        return list(map(_version_of, self._trained))

    def student_has_gradients(self) -> bool:
        """True if a parameter of the student has a gradient."""
        return any(parameter.grad is not None for parameter in self._trained)

    @torch.no_grad()
    def average(self, weight: float) -> None:
        """Move the teacher's parameters towards the student's, and copy the rest.

        Raises:
            FloatingPointError: If a parameter of the student is not finite; nothing is moved then.
                On CUDA the check would wait for the GPU, so it is read by a later call.
        """
        averages, sources = self._averaged
        if self._converted:
            averages, sources = list(averages), list(sources)
        for mine, source in self._converted:
            mine, source = _local(mine), _local(source)
            source = source.to(device=mine.device, dtype=mine.dtype)
            if mine.is_complex():
                mine, source = torch.view_as_real(mine), torch.view_as_real(source)
            averages.append(mine)
            sources.append(source)
        if averages:
            self._check_finite(averages, sources)
            torch._foreach_lerp_(averages, sources, weight)
        for mine, source in self._copied:
            _local(mine).copy_(_local(source))

    def _check_finite(self, averages: list[Tensor], sources: list[Tensor]) -> None:
        """One reduction over all parameters, whose result is read at once on the CPU.

        On CUDA it is read once it has arrived. On other devices, where reading it would wait for
        all that is queued, nothing is checked.
        """
        if self._finite is not None:
            arrived, event = self._finite
            if not event.query():
                return
            self._finite = None
            if not arrived:
                self._raise_not_finite(averages)  # which have taken it over since
        if sources[0].device.type not in ("cpu", "cuda"):
            return
        norms: Sequence[Tensor] = torch._foreach_norm(sources)
        if not self._one_device:
            norms = [norm.cpu() for norm in norms]
        finite = torch.stack(list(norms)).isfinite().all()
        if finite.is_cuda:
            arriving = torch.empty_like(finite, device="cpu", pin_memory=True)
            arriving.copy_(finite, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._finite = arriving, event
        elif not finite:
            self._raise_not_finite(sources)

    def _raise_not_finite(self, tensors: Sequence[Tensor]) -> None:
        # None are found where the square of a large number was infinite, not the number.
        bad = [n for n, x in zip(self._names, tensors, strict=True) if not x.isfinite().all()]
        if bad:
            raise FloatingPointError(
                f"student: {bad[0]} and {len(bad) - 1} other parameters are not finite; continue "
                "from an earlier checkpoint, with a lower learning rate or clipped gradients"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the teacher pairs its own tensors


class Snapshot:
    """All children, parameters and buffers of a module, and the memory of each tensor.

    To compare them takes a tenth of the time of a walk through the modules. Noticed are modules,
    parameters and buffers that were added, removed or replaced at any depth, and memory that was,
    as by `module.to(dtype)`.
    """

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        # Children are held weakly: they may refer to the module, which could not be freed then.
        self._root = weakref.ref(module)
        self._parents = [weakref.ref(m) for m in modules if m._modules]
        self._children = [
            _nothing if child is None else weakref.ref(child)
            for child in gc.get_referents(*[m._modules for m in modules if m._modules])
        ]
        self._dicts: list[Any] = [d for m in modules for d in (m._parameters, m._buffers)]
        self._dicts += [m._modules for m in modules if not m._modules]  # to see them filled
        self._values = gc.get_referents(*self._dicts)
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        # While its memory is held, no other tensor gets the same address.
        self._memory = [tensor.detach() for tensor in self._tensors]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._sizes = list(map(Tensor.numel, self._tensors))
        self.held: list[list[Any]] = [self._dicts, self._values, self._tensors, self._memory]

    def holds(self, module: nn.Module) -> bool:
        """True if it is the same module with the same contents."""
        parents: list[Any] = list(map(call, self._parents))
        if self._root() is not module or None in parents:
            return False
        # `get_referents` lists the values of many dicts in one call.
        children = gc.get_referents(*map(_children_of, parents))
        return (
            _same(children, list(map(call, self._children)))
            and _same(gc.get_referents(*self._dicts), self._values)
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and list(map(Tensor.numel, self._tensors)) == self._sizes
        )


_children_of = attrgetter("_modules")
_version_of = attrgetter("_version")


def _clear(lists: list[list[Any]], _reference: object) -> None:
    for each in lists:
        each.clear()


def _nothing() -> None:
    """In place of a weak reference to None."""


def _same(actual: list[Any], expected: list[Any]) -> bool:
    return len(actual) == len(expected) and all(map(is_, actual, expected))


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device]:
    return tensor.dtype, tensor.device


def _local(tensor: Any) -> Tensor:
    """Return this rank's shard of a sharded tensor, or the tensor."""
    return cast(Tensor, tensor.to_local()) if issubclass(type(tensor), _dtensor()) else tensor


def _dtensor() -> tuple[type, ...]:
    return loaded_type("torch.distributed.tensor", "DTensor")


def is_half_precision(tensor: Tensor) -> bool:
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
        if is_half_precision(tensor):
            raise TypeError(
                f"teacher: parameter {name} is {tensor.dtype}; the average is kept in float32, "
                "since in half precision it does not change at a momentum near 1; use autocast"
            )


def _sharded_names(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """Return the names of sharded tensors; raise unless both are sharded in the same way."""
    dtensor = _dtensor()

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
