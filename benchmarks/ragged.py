"""Time of transformer blocks on ragged contexts: padded, packed and of one length.

    python benchmarks/ragged.py --write benchmarks/results/ragged.json
    python benchmarks/ragged.py --device cuda --amp --depth 12 --write benchmarks/results/ragged.json

Forward and backward of blocks of a ViT-S encoder and of its predictor, on the contexts that
`MultiBlockMask(context_length="pad")` draws. All ways compute the same features of the same
tokens, except for the last two, which have no padding to avoid: contexts of the mean length, and
of the guaranteed number of tokens. Ratios are to the first way in the same round; the median over
rounds is reported.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import save
from timing import in_turns
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit import MultiBlockMask, TokenSet
from jepakit.nn._blocks import Attention, Block
from jepakit.nn._padding import key_mask

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
        done = [super(Grouped, self).forward(x[of, :n], mask) for of, n, mask in groups]
        return torch.cat([part.flatten(0, 1) for part in done])


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


def ways(part: str, args: argparse.Namespace, *, compiled: bool) -> dict[str, Callable[[], None]]:
    """Name of a way to a function that runs forward and backward once."""
    device, width = torch.device(args.device), WIDTHS[part]
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(width, 6, 4.0, 0.0) for _ in range(args.depth)).to(device)
    valid, fixed = sequences(part, args.batch_size, device)
    (b, n), counts = valid.shape, valid.sum(dim=1)
    x = torch.randn(b, n, width, device=device)
    mask = key_mask(valid)
    dtype = torch.bfloat16 if args.amp else torch.float32
    additive = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, -torch.inf)
    rows = valid.flatten().nonzero().squeeze(1)
    tokens = x.flatten(0, 1)[rows]
    offsets = F.pad(counts.cumsum(0), (1, 0))
    groups = []
    for of in counts.argsort().chunk(args.groups):
        longest = int(counts[of].max())
        groups.append((of, longest, key_mask(valid[of, :longest])))
    mean = round(counts.float().mean().item())

    def call(way: type[Padded], x: Tensor, *arguments: Any) -> Callable[[], None]:
        run: Layers = way(blocks)
        run = torch.compile(run) if compiled else run
        x = x.clone().requires_grad_()

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                out = run(x, *arguments)
            out.float().square().mean().backward()

        return step

    found = {
        "padded": call(Padded, x, mask),
        "padded, additive mask": call(Padded, x, additive),
        "packed": call(Packed, tokens, additive, rows, (b, n)),
        "jagged": call(Jagged, tokens, offsets),
        "groups": call(Grouped, x, groups),
        "mean length": call(Padded, x[:, :mean], None),
        "fixed length": call(Padded, x[:, :fixed], None),
    }
    check_features(blocks, x, valid, mask, additive, rows, offsets, groups)
    return found


@torch.no_grad()
def check_features(
    blocks: nn.ModuleList,
    x: Tensor,
    valid: Tensor,
    mask: Tensor,
    additive: Tensor,
    rows: Tensor,
    offsets: Tensor,
    groups: list[tuple[Tensor, int, Tensor]],
) -> None:
    """Raise unless all ways give the same features of what is there."""
    expected, tokens = Padded(blocks)(x, mask)[valid], x.flatten(0, 1)[rows]
    kept = torch.cat([valid[of, :n].flatten() for of, n, _ in groups])
    order = torch.cat([of for of, _, _ in groups])
    by_group = torch.cat([F.pad(valid[of, :n], (0, valid.shape[1] - n)) for of, n, _ in groups])
    grouped = torch.zeros_like(x)
    grouped[order] = grouped.new_zeros(*by_group.shape, x.shape[-1]).masked_scatter(
        by_group.unsqueeze(-1), Grouped(blocks)(x, groups)[kept]
    )
    found = {
        "padded, additive mask": Padded(blocks)(x, additive.float())[valid],
        "packed": Packed(blocks)(tokens, additive.float(), rows, tuple(valid.shape)),
        "jagged": Jagged(blocks)(tokens, offsets),
        "groups": grouped[valid],
    }
    for name, features in found.items():
        if not torch.allclose(features, expected, atol=1e-3):
            raise ValueError(f"{name}: features differ by {(features - expected).abs().max():.1e}")


def measure(part: str, args: argparse.Namespace, *, compiled: bool) -> Row:
    """Milliseconds of each way, and the median of its ratios to padded sequences."""
    device = torch.device(args.device)
    row: Row = {"part": part, "compiled": compiled, "batch_size": args.batch_size}
    row |= {"depth": args.depth, "amp": args.amp, "failed": {}}
    calls = ways(part, args, compiled=compiled)
    for name, step in list(calls.items()):
        try:
            step()
        except Exception as error:  # what a version of torch does not support is a result, too
            row["failed"][name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            del calls[name]
    times = in_turns(calls, args.rounds, device, repeats=args.repeats)
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
    parser.add_argument("--depth", type=int, default=2, help="number of blocks of each part")
    parser.add_argument("--groups", type=int, default=4, help="groups of similar length")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=1, help="steps of each round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="result file, .json; its table beside it")
    parser.set_defaults(data="random features", seeds=[0])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for compiled in (False, True):
        for part in WIDTHS:
            torch.compiler.reset()
            rows.append(measure(part, args, compiled=compiled))
            print(rows[-1]["part"], rows[-1]["ms"], rows[-1]["failed"], flush=True)
    values = f"medians of {args.rounds} rounds, batch {args.batch_size}, {args.depth} blocks"
    save(args, rows, table, args.device, values + f", {args.threads} thread(s)")


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
