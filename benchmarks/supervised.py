"""Supervised training of the encoder of the examples, for comparison.

    python benchmarks/supervised.py --data textures --out runs/supervised

Backbone, data, crops and evaluation are those of `examples/ijepa.py`, with a linear head on the
mean features and cross entropy. The encoder is evaluated like every other row, by kNN and a linear
probe on frozen features; the accuracy of the trained head is reported too.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import jepakit
from jepakit.data import PixelStatistics, ResumableBatches, load_images, random_crops
from jepakit.evaluation import evaluate
from jepakit.optim import param_groups


def main() -> None:
    args = parse_args()
    out, device = Path(args.out), torch.device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    train, test = load_images(args.data, image_size=args.image_size)
    statistics, (channels, *size) = PixelStatistics.from_dataset(train), train[0][0].shape
    normalize = standardise_each if args.standardise == "image" else statistics
    steps = args.epochs * (len(train) // args.batch_size) if args.steps is None else args.steps
    torch.manual_seed(args.seed)
    backbone = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, in_chans=channels, img_size=tuple(size),
        patch_size=args.patch_size, embed_dim=args.width, depth=args.depth, num_heads=args.heads,
        weight_init="jax",
    )  # fmt: skip
    encoder = jepakit.MaskedViT(backbone)
    num_classes = max(int(label) for _, label in train) + 1
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(args.width, num_classes)})
    model.to(device)
    optimizer = torch.optim.AdamW(param_groups(model, args.weight_decay))
    lr = jepakit.warmup_cosine(args.lr, args.lr / 100, warmup_steps=steps // 10, steps=steps)

    score = partial(
        evaluate,
        train=train,
        test=test,
        prepare=normalize,
        num_images=args.eval_images,
        device=device,
    )
    rows = {
        "raw pixels": score(lambda images: images.flatten(1)),
        "untrained encoder": score(encoder.extract_features),
    }
    order = ResumableBatches(len(train), args.batch_size, steps=steps, seed=args.seed)
    curves: dict[str, list[tuple[int, float]]] = {"loss": [], "rank": []}
    began = time.perf_counter()
    loader = DataLoader(train, batch_sampler=order, num_workers=args.workers)
    for step, (images, y) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        images = random_crops(normalize(images.to(device)), args.crop_scale, flip=args.flip)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
            features = encoder.extract_features(images)
            loss = F.cross_entropy(model["head"](features), y.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            curves["loss"].append((step, loss.item()))
            curves["rank"].append((step, jepakit.effective_rank(features.detach().float()).item()))
        if step % max(1, steps // 20) == 0:
            print(f"step {step}/{steps}  loss {loss.item():.4f}", flush=True)
    seconds = time.perf_counter() - began
    rows["trained encoder"] = score(encoder.extract_features)
    right = 0
    with torch.no_grad():
        for images, y in DataLoader(test, 256):
            features = encoder.extract_features(normalize(images.to(device)))
            right += int((model["head"](features).cpu().argmax(1) == y).sum())
    result = {"settings": vars(args), "rows": rows, "head": right / len(test)}
    result |= {"curves": curves, "steps": steps, "images": steps * args.batch_size}
    result |= {"train_images": len(train), "seconds": seconds, "image_shape": [channels, *size]}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    for name, row in rows.items():
        print(
            f"{name:18} kNN-20 {row.knn:.3f}  linear {row.linear:.3f}  rank {row.rank:.1f}  "
            f"std {row.std:.2f}"
        )
    print(f"the trained head   {result['head']:.3f}  after {seconds:.0f} s")


def standardise_each(images: torch.Tensor) -> torch.Tensor:
    """Standardise each channel of each image on its own."""
    return F.instance_norm(images.float() / 255, eps=1e-3)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="textures", help="dataset, as in the examples")
    parser.add_argument("--image-size", type=int, help="resize to this many pixels")
    parser.add_argument(
        "--standardise", default="image", choices=("image", "dataset"), help="as in ijepa.py"
    )
    parser.add_argument("--patch-size", type=int, default=6, help="side of a patch in pixels")
    parser.add_argument("--width", type=int, default=64, help="width of the encoder")
    parser.add_argument("--depth", type=int, default=4, help="number of encoder blocks")
    parser.add_argument("--heads", type=int, default=2, help="attention heads")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the data")
    parser.add_argument("--steps", type=int, help="number of steps, instead of --epochs")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="weight decay of matrices")
    parser.add_argument(
        "--crop-scale", type=float, nargs=2, default=(1.0, 1.0), help="area of a crop"
    )
    parser.add_argument("--flip", action="store_true", help="flip images horizontally")
    parser.add_argument("--eval-images", type=int, default=5000, help="images of each split")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="number of loader processes")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", default="supervised-out", help="folder for result.json")
    args = parser.parse_args()
    args.crop_scale = tuple(args.crop_scale)
    return args


if __name__ == "__main__":
    main()
