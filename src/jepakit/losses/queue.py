"""`FeatureQueue`: the latest features of training, as negatives."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from jepakit._checks import check_floating, check_int, check_process_group, value_checks_on
from jepakit._distributed import gather_rows, row_counts

__all__ = ["FeatureQueue"]


class FeatureQueue(nn.Module):
    """First in, first out: the last `size` feature vectors that were pushed in training.

    Call `push` after the loss, with the keys: a key that is in the queue already would be its own
    negative. In eval mode `push` does nothing, so that validation features never enter. Features
    are kept without gradient, and what `negatives` gave before a push stays as it was. The state
    dict holds features and their count; a resumed run goes on where it was. Load it on every rank:
    the count is no buffer, and `DistributedDataParallel` sends buffers alone. Push outside of
    `torch.compile`: a filling queue has another length at every step.

    Args:
        size: Most vectors to keep.
        dim: Their width.

    Raises:
        TypeError: If `size` or `dim` is not an int.
        ValueError: If either is below 1.

    Example:
        >>> import torch
        >>> from jepakit.losses import FeatureQueue
        >>> queue = FeatureQueue(3, 2)
        >>> queue.push(torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
        >>> queue.push(torch.tensor([[3.0, 3.0], [4.0, 4.0]]))
        >>> queue.negatives
        tensor([[2., 2.],
                [3., 3.],
                [4., 4.]])

    Source:
        MoCo (arXiv:1911.05722). Differences: it starts empty instead of with noise, batches need
        not divide its size, and the oldest stands first.
    """

    features: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        check_int("size", size, minimum=1)
        check_int("dim", dim, minimum=1)
        self.size, self.dim, self.count = size, dim, 0
        # Filled from the end, the newest last.
        self.register_buffer("features", torch.zeros(size, dim))

    @property
    def negatives(self) -> Float[Tensor, "k d"]:
        """What the queue holds, oldest first; `[0 d]` while it is empty."""
        return self.features[self.size - self.count :]

    @torch.no_grad()
    def push(
        self, features: Float[Tensor, "n d"], *, process_group: dist.ProcessGroup | None = None
    ) -> None:
        """Add vectors and drop the oldest beyond `size`; nothing in eval mode.

        Args:
            features: Vectors to add, the newest last. Normalised or not: `info_nce` normalises.
            process_group: Add those of all ranks of this group, in rank order, so that every rank
                holds the same queue. Every rank must call.

        Raises:
            TypeError: If `features` is not floating point.
            ValueError: If `features` is not `[n, dim]`; or, under `JEPAKIT_TYPECHECK=1` on the CPU,
                holds NaN or infinity.
        """
        check_floating("features", features)
        check_process_group(process_group)
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(
                f"features {tuple(features.shape)}: must have the shape [n, {self.dim}]"
            )
        if not self.training:
            return
        # It would be every query's negative until it is dropped.
        if value_checks_on(features) and not torch.isfinite(features).all():
            raise ValueError(
                f"features {tuple(features.shape)}: must be finite, got NaN or infinity"
            )
        if process_group is not None:
            features = gather_rows(features, row_counts(features, process_group), process_group)
        # A new tensor: the old one may be part of a graph that has not gone backward yet.
        self.features = torch.cat([self.features, features.to(self.features)])[-self.size :]
        self.count = min(self.size, self.count + len(features))

    def get_extra_state(self) -> dict[str, int]:
        """The number of vectors held."""
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the number of vectors held.

        Args:
            state: What `get_extra_state` gave.
        """
        check_int("count", state["count"], minimum=0)
        self.count = min(self.size, state["count"])

    def extra_repr(self) -> str:
        """Size and width."""
        return f"{self.size}, {self.dim}"
