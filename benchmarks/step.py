"""Throughput of an I-JEPA training step, eager and compiled, and its fraction of the peak.

    python benchmarks/step.py --device cuda --amp --peak-tflops 989 \
        --write benchmarks/results/step.json
    python benchmarks/step.py --width 64 --depth 2 --image-size 32 --patch-size 4 --batch-size 16

A step consists of masks, student, teacher, predictor, loss, backward, AdamW and the update of the
teacher, on random images, so that no data loading is measured. Eager and compiled steps are timed
in turn, and the table shows medians. The operations are those of all matrix products, counted in
one eager step without fused attention; the peak is the vendor's number for dense products in the
precision that is used.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from runs import save
from timing import in_turns
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import jepakit
from jepakit.optim import param_groups


def training_step(args: argparse.Namespace, compiled: bool) -> Callable[[], None]:
    """Build a function that runs one training step."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=args.image_size, embed_dim=args.width,
        patch_size=args.patch_size, depth=args.depth, num_heads=args.heads,
    )  # fmt: skip
    encoder = jepakit.MaskedViT(backbone).to(device)
    predictor = jepakit.MaskedPredictor(
        encoder.grid_size,
        args.width,
        predictor_embed_dim=args.predictor_width,
        depth=args.predictor_depth,
        num_heads=args.heads,
    ).to(device)
    teacher = jepakit.EMATeacher(encoder, 0.996)
    # Contexts of one length, so that nothing is recompiled.
    sampler = jepakit.MultiBlockMask(
        encoder.grid_size, target_size_per="sample", context_length=args.context
    )
    learned = nn.ModuleList([encoder, predictor])
    optimizer = torch.optim.AdamW(param_groups(learned, 0.05), fused=device.type == "cuda")
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)

    def loss_of(images: torch.Tensor, masks: jepakit.Masks) -> torch.Tensor:
        target = jepakit.normalize_targets(teacher(images))
        target = jepakit.take_tokens(target, masks.targets)
        pred = predictor(encoder(images, masks.context), masks.context, masks.targets)
        return jepakit.masked_smooth_l1(pred, target, masks.targets.valid)

    compute = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        masks = sampler(len(images), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            loss = compute(images, masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(encoder)

    return step


def main() -> None:
    args = parse_args()
    device = torch.device(args.device)
    args.data, args.seeds = "random images", [0]
    eager = training_step(args, compiled=False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        eager()
    flops = counter.get_total_flops()
    ways = {"eager": eager, "compiled": training_step(args, compiled=True)}
    for step in ways.values():  # compile, also for other lengths of the targets
        for _ in range(10):
            step()
    times = in_turns(ways, args.rounds, device, repeats=args.steps)
    rows = []
    for name in ways:
        median = statistics.median(times[name])
        row: dict[str, Any] = {"name": name, "seconds": times[name], "flops_per_step": flops}
        row |= {"images_per_second": args.batch_size / median}
        row |= {
            "peak_ratio": flops / median / args.peak_tflops / 1e12 if args.peak_tflops else None
        }
        row |= {"encoder": f"ViT {args.width}/{args.patch_size}, {args.depth} blocks"}
        row |= {"image_size": args.image_size, "batch_size": args.batch_size}
        rows.append(row)
    save(args, rows, table, args.device)


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the rounds."""
    first = rows[0]
    lines = [
        f"| {first['encoder']} at {first['image_size']}, batch {first['batch_size']} "
        "| images/s | of eager | fraction of the peak |",
        "|---|---|---|---|",
    ]
    for row in rows:
        ratio = row["images_per_second"] / first["images_per_second"]
        fraction = "" if row["peak_ratio"] is None else f"{100 * row['peak_ratio']:.0f} %"
        speed = f"{row['images_per_second']:,.0f}"
        lines.append(f"| {row['name']} | {speed} | {ratio:.2f} | {fraction} |")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=128, help="side in pixels")
    parser.add_argument("--patch-size", type=int, default=8, help="side in pixels")
    parser.add_argument("--width", type=int, default=384, help="width of the encoder")
    parser.add_argument("--depth", type=int, default=12, help="number of encoder blocks")
    parser.add_argument("--heads", type=int, default=6, help="attention heads")
    parser.add_argument("--predictor-width", type=int, default=192, help="width of the predictor")
    parser.add_argument("--predictor-depth", type=int, default=6, help="number of its blocks")
    parser.add_argument("--context", type=int, help="context tokens; default a quarter")
    parser.add_argument("--batch-size", type=int, default=256, help="images per step")
    parser.add_argument("--device", default="cpu", help="device to train on")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--steps", type=int, default=10, help="steps of each round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing")
    parser.add_argument("--peak-tflops", type=float, help="peak of the device in Tflop/s")
    parser.add_argument(
        "--write", type=Path, help="result file, .json; the table is written beside it"
    )
    args = parser.parse_args()
    if args.context is None:
        args.context = (args.image_size // args.patch_size) ** 2 // 4
    return args


if __name__ == "__main__":
    main()
