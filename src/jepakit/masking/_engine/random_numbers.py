"""Random numbers of a batch of masks: one row of uniforms for each sample.

Rows come from a generator or, in a collator, from one key for each sample, so that a sample's masks
do not depend on its batch-mates. They are drawn on the CPU, so that masks are the same everywhere.
"""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit._checks import as_int, check_generator

# None is the CPU.
Device = torch.device | str | int | None


def draw_uniforms(
    batch_size: int, num_uniforms: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "b k"]:
    """Rows of uniforms in [0, 1) from a CPU generator, the global one if None; on the CPU."""
    batch_size = as_int("batch_size", batch_size, minimum=1)
    check_generator(generator)
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator on {generator.device}: must be a CPU generator, so that masks are the same "
            "on every device; pass `device` to get them elsewhere"
        )
    # dtype and device are given, so that torch's defaults for them change nothing.
    return torch.rand(
        batch_size, num_uniforms, generator=generator, dtype=torch.float32, device="cpu"
    )


def copy_to(tensor: Tensor, device: Device) -> Tensor:
    """Copy from the CPU to a device without a host synchronisation."""
    if device is None or torch.device(device).type == "cpu":
        return tensor
    source = tensor.pin_memory() if torch.device(device).type == "cuda" else tensor
    return source.to(device, non_blocking=True)


def random_order(
    uniforms: Float[Tensor, "b N"], members: Bool[Tensor, "b N"] | None = None
) -> Int[Tensor, "b N"]:
    """Positions in a random order; `members` before all others, if given.

    Positions are sorted by int keys of 31 bits: one for non-members, random ones, and the position
    itself in the last ones. So no two keys are equal, and every device gives the same order. On
    14 x 14, position p with the number u has the key floor(u * 2^22) * 2^8 + p. One pair in
    millions has equal random bits and goes by position.
    """
    size = uniforms.shape[1]
    position_bits = (size - 1).bit_length()
    random_bits = min(24, 30 - position_bits)
    keys = (uniforms * 2.0**random_bits).int() << position_bits
    keys |= torch.arange(size, dtype=torch.int32, device=uniforms.device)
    if members is not None:
        keys |= (~members).int() << (position_bits + random_bits)
    return sort_rows(keys) & ((1 << position_bits) - 1)


def random_members(
    members: Bool[Tensor, "k N"], uniforms: Float[Tensor, "b m"]
) -> Int[Tensor, "b m"]:
    """Positions drawn from the members of one mask, or of one for each sample."""
    rank = members.cumsum(dim=1)
    count = rank[:, -1:]
    number = torch.minimum((uniforms * count).long(), count - 1)
    return torch.searchsorted(rank.expand(len(uniforms), -1).contiguous(), number + 1)


def sort_rows(values: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """Rows in ascending order; NumPy sorts integers on the CPU thirty times as fast as torch."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))


def derive_seed(*parts: int) -> int:
    """A signed 64-bit seed that depends on every part, by BLAKE2b.

    Parts are signed 64-bit integers, such as seed, epoch and sample index.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def keyed_uniforms(keys: Sequence[int], num_uniforms: int) -> Float[Tensor, "b k"]:
    """Rows of uniforms in [0, 1), each a function of its own signed 64-bit key alone.

    Number $j$ of the row with key $s$ is output $j$ of SplitMix64 (Steele, Lea and Flood, OOPSLA
    2014) seeded with $s$, its highest 24 bits as a fraction: the counter
    $s + (j + 1)\\gamma$, mixed by xor, shift and multiplication modulo 2^64.
    """
    key = torch.tensor(keys, dtype=torch.int64, device="cpu").view(-1, 1)
    counter = torch.arange(1, num_uniforms + 1, dtype=torch.int64, device="cpu")
    x = key + counter * _signed(0x9E3779B97F4A7C15)  # int64 wraps around, as wanted
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 40).float() * 2.0**-24


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch's shift copies the sign bit; the mask clears the copies.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
