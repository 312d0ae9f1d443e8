"""Time of transformer blocks on ragged contexts: padded, packed and of one length.

    python benchmarks/ragged.py --write benchmarks/results/ragged.json
    python benchmarks/ragged.py --device cuda --amp --depth 12 --write gpu.json

Forward and backward of blocks of a ViT-S encoder and of its predictor, on the contexts that
`MultiBlockMask(context_length="pad")` draws. All ways compute the same features of the same
tokens, except for the last two, which have no padding to avoid: contexts of the mean length, and
of the guaranteed number of tokens. Ratios are to the first way in the same round; the median over
rounds is reported. On a CPU it is the time of one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import save
from timing import in_turns
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit import MultiBlockMask
from jepakit.nn._padding import additive_key_mask, key_mask
from jepakit.nn.blocks import Attention, Block

Row = dict[str, Any]
Layers = Callable[..., Tensor]
GRID = (14, 14)
# Width of the encoder and of the predictor; both have 6 heads.
WIDTHS = {"encoder": 384, "predictor": 192}


class Padded(nn.Module):
    """The blocks as they are, on padded sequences."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask, None)
        return x


class Packed(Padded):
    """Linear layers and norms on the tokens of all sequences, `[total, d]`; attention on padding.

    `rows` are the places of the tokens among `b * n` padded ones.
    """

    def forward(self, x: Tensor, mask: Tensor, rows: Tensor, shape: tuple[int, int]) -> Tensor:
        for block in self.blocks:
            x = x + self.attend(block.attn, block.norm1(x), mask, rows, shape)
            x = x + block.mlp(block.norm2(x))
        return x

    def attend(
        self, attn: Attention, x: Tensor, mask: Tensor, rows: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        b, n = shape
        qkv = attn.qkv(x)
        qkv = qkv.new_zeros(b * n, qkv.shape[-1]).index_copy(0, rows, qkv)
        q, k, v = qkv.view(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attn.proj(heads.transpose(1, 2).reshape(b * n, -1)[rows])


class Jagged(Padded):
    """torch's nested tensors with the layout `torch.jagged`."""

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        x = torch.nested.nested_tensor_from_jagged(x, offsets)
        for block in self.blocks:
            x = x + self.attend(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        return x.values()

    def attend(self, attn: Attention, x: Tensor) -> Tensor:
        # Without copies, the attention of nested tensors refuses the parts of one projection.
        parts = [part.contiguous() for part in attn.qkv(x).chunk(3, dim=-1)]
        q, k, v = (part.unflatten(-1, [attn.num_heads, -1]).transpose(1, 2) for part in parts)
        heads = F.scaled_dot_product_attention(q, k, v)
        return attn.proj(heads.transpose(1, 2).flatten(-2))


class Grouped(Padded):
    """Sequences sorted by length, in groups that are padded to their own longest."""

    def forward(self, x: Tensor, groups: list[tuple[Tensor, int, Tensor]]) -> Tensor:
        outputs = []
        for of, longest, mask in groups:
            outputs.append(super().forward(x[of, :longest], mask).flatten(0, 1))
        return torch.cat(outputs)


def sequences(part: str, batch_size: int, device: torch.device) -> tuple[Tensor, int]:
    """Which tokens of each padded sequence are there, and the length of guaranteed contexts.

    The encoder's are the contexts; the predictor's have the targets of one block behind them.
    """
    sampler = MultiBlockMask(GRID, context_length="pad")
    masks = sampler(batch_size, generator=torch.Generator().manual_seed(0), device=device)
    valid, fixed = masks.context.valid, sampler.min_context_tokens
    if part == "predictor":
        m, k = masks.targets.shape[1:]
        valid, fixed = valid.repeat_interleave(m, dim=0), fixed + k
        valid = torch.cat([valid, valid.new_ones(len(valid), k)], dim=1)
        # In front what is there, for the groups; the order of the tokens has no other effect.
        valid = valid.sort(dim=1, descending=True).values
    return valid, fixed


def ways(part: str, args: argparse.Namespace, *, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Name of a way to a function that runs forward and backward once and returns the loss."""
    device, width = torch.device(args.device), WIDTHS[part]
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(width, 6) for _ in range(args.depth)).to(device)
    valid, fixed = sequences(part, args.batch_size, device)
    (b, n), counts = valid.shape, valid.sum(dim=1)
    x = torch.randn(b, n, width, device=device)
    dtype = torch.bfloat16 if args.amp else torch.float32
    mask, additive = key_mask(valid), additive_key_mask(valid, dtype)
    rows = valid.flatten().nonzero().squeeze(1)
    tokens = x.flatten(0, 1)[rows]
    offsets = F.pad(counts.cumsum(0), (1, 0))
    groups = []
    for of in counts.argsort().chunk(args.groups):
        longest = int(counts[of].max())
        groups.append((of, longest, additive_key_mask(valid[of, :longest], dtype)))
    in_groups = torch.cat([valid[of, :longest].flatten() for of, longest, _ in groups])
    everything = torch.ones((), dtype=torch.bool, device=device)
    mean = round(counts.float().mean().item())

    def call(
        way: type[Padded], counted: Tensor, x: Tensor, *arguments: Any
    ) -> Callable[[], Tensor]:
        run: Layers = way(blocks)
        run = torch.compile(run) if compiled else run
        x, weight = x.clone().requires_grad_(), counted.float().unsqueeze(-1)

        def step() -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                out = run(x, *arguments)
            loss = (out.float().square() * weight).sum() / len(tokens)
            loss.backward()
            return loss.detach()

        return step

    return {
        "padded": call(Padded, valid, x, mask),
        "padded, one additive mask": call(Padded, valid, x, additive),
        "packed": call(Packed, everything, tokens, additive, rows, (b, n)),
        "jagged": call(Jagged, everything, tokens, offsets),
        "groups": call(Grouped, in_groups, x, groups),
        "mean length": call(Padded, everything, x[:, :mean], None),
        "fixed length": call(Padded, everything, x[:, :fixed], None),
    }


def measure(part: str, args: argparse.Namespace, *, compiled: bool) -> Row:
    """Milliseconds of each way, and the median of its ratios to padded sequences."""
    device = torch.device(args.device)
    row: Row = {"part": part, "compiled": compiled, "batch_size": args.batch_size}
    row |= {"depth": args.depth, "amp": args.amp, "failed": {}}
    calls, losses = ways(part, args, compiled=compiled), {}
    for name, step in list(calls.items()):
        try:
            losses[name] = step().item()
        except Exception as error:  # what a version of torch does not support is a result, too
            row["failed"][name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            del calls[name]
    for name in losses.keys() - {"mean length", "fixed length"}:
        if abs(losses[name] / losses["padded"] - 1) > (1e-2 if args.amp else 1e-5):
            raise ValueError(f"{name}: a loss of {losses[name]}, padded {losses['padded']}")
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = in_turns(calls, args.rounds, device, repeats=args.repeats, clock=clock)
    valid, fixed = sequences(part, args.batch_size, device)
    row |= {"length": valid.shape[1], "mean_length": valid.sum(1).float().mean().item()}
    row |= {"fixed_length": fixed}
    row["ms"] = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    row["ratios"] = {
        name: [a / b for a, b in zip(values, times["padded"], strict=True)]
        for name, values in times.items()
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--depth", type=int, default=1, help="number of blocks of each part")
    parser.add_argument("--groups", type=int, default=4, help="groups of similar length")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=1, help="steps of each round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--write", type=Path, help="result file, .json; its table beside it")
    parser.set_defaults(data="random features", seeds=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for compiled in (False, True):
        for part in WIDTHS:
            torch.compiler.reset()
            rows.append(measure(part, args, compiled=compiled))
            print(rows[-1]["part"], rows[-1]["ms"], rows[-1]["failed"], flush=True)
    values = f"medians of {args.rounds} rounds, batch {args.batch_size}, {args.depth} block(s)"
    save(args, rows, table, args.device, values)


def table(rows: list[Row]) -> str:
    """Time of each way relative to padded sequences."""
    names = list(rows[0]["ratios"])
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for row in rows:
        mode = "compiled" if row["compiled"] else "eager"
        head = f"{row['part']}, {mode}: {row['mean_length']:.0f} tokens padded to {row['length']}"
        cells = [
            f"{statistics.median(row['ratios'][name]):.2f}" if name in row["ratios"] else "fails"
            for name in names
        ]
        lines.append(f"| {head}, fixed {row['fixed_length']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
