"""The random numbers of a batch of masks: one row of uniforms for each sample.

A sampler here is a pure function of such a table. Rows come from a generator or, in a collator,
from a key of their own, so that a sample's masks need not depend on who else is in its batch.
"""

import hashlib
import struct
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_int, type_name

__all__ = ["derive_seed", "draw_uniforms", "keyed_uniforms"]


def draw_uniforms(
    batch_size: int,
    num_uniforms: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "b k"]:
    """Rows of uniforms in [0, 1) from a CPU generator (the global one if None), on any device.

    Args:
        batch_size: Number of rows.
        num_uniforms: Numbers for each sample.
        generator: A CPU generator, so that masks are the same whatever `device` is.
        device: Where the numbers go; copied without waiting for the device.
    """
    check_int("batch_size", batch_size, minimum=1)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator={generator!r}: must be a torch.Generator or None, got "
            f"{type_name(generator)}; for a seed, torch.Generator().manual_seed(seed)"
        )
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator on {generator.device}: must be a CPU generator, so that masks are the same "
            "on every device; pass `device` to get them elsewhere"
        )
    # The same whatever the default type and device are.
    drawn = torch.rand(
        batch_size, num_uniforms, generator=generator, dtype=torch.float32, device="cpu"
    )
    return copy_to(drawn, device)


def copy_to(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """Copy from the CPU without making it wait for an accelerator's queue."""
    if device is None or torch.device(device).type == "cpu":
        return tensor
    source = tensor.pin_memory() if torch.device(device).type == "cuda" else tensor
    return source.to(device, non_blocking=True)


def derive_seed(*parts: int) -> int:
    """A 64-bit seed (as a signed integer) that depends on every part, by BLAKE2b.

    Args:
        parts: Any integers that fit 64 bits, such as seed, epoch and sample index.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def keyed_uniforms(keys: Sequence[int], num_uniforms: int) -> Float[Tensor, "b k"]:
    """Rows of uniforms in [0, 1) that depend on their own 64-bit key alone.

    Number $j$ of the row with key $s$ is the mixed counter $s + (j + 1)\\gamma$ of SplitMix64
    (Steele, Lea and Flood, OOPSLA 2014), its highest 24 bits as a fraction.

    Args:
        keys: One signed 64-bit key for each row; see `derive_seed`.
        num_uniforms: Numbers for each row.
    """
    key = torch.tensor(keys, dtype=torch.int64, device="cpu").view(-1, 1)
    counter = torch.arange(1, num_uniforms + 1, dtype=torch.int64, device="cpu")
    x = key + counter * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 40).float() * 2.0**-24


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask clears the copies of the sign bit.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
