"""Cost of a training step without running it: multiply-adds, bytes, host synchronisations, graphs.

Multiply-adds and bytes are counted on fake tensors, which have shapes and no values. Both are
polynomials in the numbers of tokens, so a few counts give the cost of every batch.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Loss = Callable[[], Tensor]
aten = torch.ops.aten


class Cost(NamedTuple):
    """Cost of one step for one image."""

    multiply_adds: float
    saved_bytes: float


def to_fake(module: nn.Module) -> nn.Module:
    """Move a module from the meta device to fake tensors on the CPU, inside a `FakeTensorMode`."""
    return module.to_empty(device="cpu")


def _attention_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Two products, of queries with keys and of weights with values."""
    batch, heads, n, width = q
    return 2 * batch * heads * n * k[2] * (width + v[3])


def _attention_backward_flops(grad: Any, q: Any, k: Any, v: Any, *rest: Any, **_: Any) -> int:
    """Four products; that the fused kernel multiplies queries and keys once more is left out."""
    return 2 * _attention_flops(q, k, v)


_CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def count(loss: Loss, modules: Iterable[nn.Module], batch_size: int) -> Cost:
    """Multiply-adds of all products, forward and backward, and bytes kept for the backward pass.

    Every storage that autograd saves counts once, with all of its bytes, images included and
    parameters and buffers not.
    """
    own = {
        tensor.untyped_storage()._cdata
        for module in modules
        for tensor in itertools.chain(module.parameters(), module.buffers())
    }
    saved: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses apart

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = loss()
        num_bytes = sum(storage.nbytes() for storage in saved.values())
        value.backward()
    return Cost(counter.get_total_flops() / 2 / batch_size, num_bytes / batch_size)


def fake_mode() -> FakeTensorMode:
    """Fake tensors; token sets made outside may enter."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class CostModel:
    """Cost of a step as a function of the context's and a target's number of tokens, n and k.

    Layers cost a multiple of n and k, attention a multiple of n^2, n k and k^2, so six counts
    determine all coefficients; a seventh is predicted and compared.
    """

    def __init__(self, count_at: Callable[[int, int], Cost], points: list[tuple[int, int]]) -> None:
        rows = np.array([self._terms(n, k) for n, k in points])
        costs = np.array([count_at(n, k) for n, k in points])
        self._coefficients = np.linalg.solve(rows[:6], costs[:6])
        predicted = rows[6:] @ self._coefficients
        if not np.allclose(predicted, costs[6:], rtol=1e-6):
            raise RuntimeError(f"costs are no quadratic of n and k: {predicted} and {costs[6:]}")

    @staticmethod
    def _terms(n: int, k: int) -> list[float]:
        return [1.0, n, k, n * n, n * k, k * k]

    def mean(self, counts: Iterable[tuple[int, int]]) -> Cost:
        """Mean over batches with these numbers of tokens."""
        rows = np.array([self._terms(n, k) for n, k in counts])
        return Cost(*map(float, (rows @ self._coefficients).mean(axis=0)))


# Operations that wait for the accelerator: their result, or its shape, depends on values there.
_DATA_DEPENDENT = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.bincount,
    aten.equal,
}


class CountSynchronisations(TorchDispatchMode):
    """Count what would make the host wait for an accelerator, on the meta device in its place.

    These are scalars that are read, operations whose output's shape depends on values, and copies
    between host and device that block. What is read is answered with plausible numbers, so that
    the step goes on; where a shape depends on values, the meta device raises.
    """

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer, self.found = answer, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        on_meta = any(isinstance(arg, Tensor) and arg.is_meta for arg in args)
        packet = func.overloadpacket
        if packet is aten.index and any(
            isinstance(index, Tensor) and index.dtype == torch.bool and index.is_meta
            for index in args[1]
        ):
            self.found.append("index by a mask")
        elif packet in _DATA_DEPENDENT and on_meta:
            self.found.append(packet.__name__)
            if packet is aten._local_scalar_dense:
                return self.answer
        elif packet in (aten._to_copy, aten.copy_) and self._blocks(packet, args, kwargs):
            self.found.append("blocking copy")
            if on_meta and packet is aten._to_copy:
                ascending = self.answer + torch.arange(args[0].numel())
                return ascending.view(args[0].shape).to(kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)

    @staticmethod
    def _blocks(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a copy is between host and device, and not asynchronous."""
        if packet is aten._to_copy:
            device = kwargs.get("device")
            crosses = device is not None and torch.device(device).type != args[0].device.type
        else:
            crosses = args[0].device.type != args[1].device.type
        return crosses and not (kwargs.get("non_blocking") or args[2:3] == (True,))


class CountGraphs:
    """A backend for `torch.compile` that counts the graphs and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward
