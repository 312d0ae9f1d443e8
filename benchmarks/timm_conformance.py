"""Laws of `MaskedViT`, measured on every model that timm lists.

    python benchmarks/timm_conformance.py --write docs/timm_models_table.md
    python benchmarks/timm_conformance.py --only "vit_*dinov3*"

Vision transformers are built with two blocks of their own width, on a grid of 4 x 5 patches, with
random weights; parameters are moved by noise, so that no layer scale of 1e-5 and no table of zeros
hides what a block does. Of all other classes, the smallest model is tried in `replace` mode.

Laws, each as the largest difference over the output's largest value:

full     all patches visible equals the backbone's `forward_features`
masked   a context equals the full forward with hidden patches masked in attention
leak     changing pixels outside all visible receptive fields changes nothing (exact)
batch    a sample alone equals the same in a padded batch
finite   outputs and gradients are finite, also with an empty context
"""

import argparse
import contextlib
import copy
import fnmatch
import gc
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit import MaskedViT, TokenSet, take_tokens
from jepakit.nn import UnsupportedBackboneError

# timm's files of plain vision transformers.
PLAIN = [
    "vision_transformer",
    "vision_transformer_hybrid",
    "deit",
    "vitamin",
    "eva",
    "beit",
    "vision_transformer_relpos",
    "naflexvit",
]
GRID = (4, 5)
TOLERANCE = 1e-4
ALLOWED = {"leak": 0.0}


@dataclass
class Row:
    """Measured laws of one model."""

    name: str
    model_class: str
    mode: str
    laws: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def passed(self) -> bool:
        if self.mode == "refused":
            return True
        return bool(self.laws) and all(
            value <= ALLOWED.get(law, TOLERANCE) for law, value in self.laws.items()
        )


def plain_backbone(name: str) -> nn.Module:
    """A model with two blocks and a grid of 4 x 5 patches."""
    changes: dict[str, Any] = {"num_classes": 0, "depth": 2}
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    if hasattr(model, "embeds"):
        return timm.create_model(name, pos_embed_grid_size=GRID, **changes)
    patch = model.patch_embed.feat_ratio(as_scalar=False)
    changes["img_size"] = (GRID[0] * patch[0], GRID[1] * patch[1])
    try:
        return timm.create_model(name, **changes)
    except AssertionError:  # heads of keys are listed block by block: one block of each kind
        heads = [block.attn.num_kv_heads for block in model.blocks]
        return timm.create_model(name, num_kv_heads=(heads[0], heads[len(heads) // 2]), **changes)


def move(model: nn.Module) -> None:
    """Add noise to every parameter, of half its std.

    Constant parameters, such as biases, get 0.02, a layer scale 0.5, a table of biases 1.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            start = 1.0 if "relative_position_bias_table" in name else 0.02
            if spread <= 1e-4 and 0 < float(parameter.abs().mean()) < 0.1:
                start = 0.5  # a layer scale
            scale = 0.5 * spread if spread > 1e-4 else start
            parameter.add_(torch.randn_like(parameter), alpha=scale)


def ragged(grid_size: tuple[int, int], batch: int) -> TokenSet:
    """Sets of all sizes; the first holds one position, the second all of them."""
    size = grid_size[0] * grid_size[1]
    counts = torch.randint(2, size, (batch,))
    counts[0], counts[1] = 1, size
    order = torch.rand(batch, size).argsort(dim=1)
    order[0] = torch.arange(size).flip(0)
    return TokenSet.from_mask(order < counts[:, None], grid_size)


@contextlib.contextmanager
def hidden_keys(seen: Tensor) -> Iterator[None]:
    """Mask the keys that are False in `seen` in every attention over as many keys."""
    original = F.scaled_dot_product_attention

    def masked(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **options: Any) -> Tensor:
        if k.shape[-2] != seen.shape[1]:
            raise AssertionError(f"{k.shape[-2]} keys where {seen.shape[1]} were expected")
        bias = torch.zeros(len(seen), 1, 1, seen.shape[1]).masked_fill(
            ~seen[:, None, None, :], -torch.inf
        )
        bias = bias if attn_mask is None else bias + attn_mask
        return original(q, k, v, attn_mask=bias, **options)

    F.scaled_dot_product_attention = masked
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def relative(ours: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value; infinite for NaN."""
    value = float((ours - expected).abs().max() / expected.abs().max())
    return value if value == value else float("inf")


def unseen_pixels(encoder: MaskedViT, images: Tensor, tokens: TokenSet) -> Tensor:
    """True where no visible patch's embedding has a gradient: `[b, 1, h, w]`.

    For patches that do not overlap these are the hidden patches, which is checked.
    """
    rows, columns = encoder.grid_size
    height, width = images.shape[2] // rows, images.shape[3] // columns
    hidden = ~tokens.to_mask().view(len(images), 1, rows, columns)
    pixels = hidden.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    embed = getattr(encoder.backbone, "patch_embed", None)
    if not has_stem(encoder.backbone):
        return pixels
    images = images.clone().requires_grad_()
    out = embed(images)
    out = out[0] if isinstance(out, tuple) else out
    if encoder.mask_mode == "replace" and encoder._adapter.layout.patch_order == "NCHW":
        out = out.permute(0, 2, 3, 1)
    grid = out.reshape(len(images), -1, out.shape[-1])
    cells = round((grid.shape[1] / (rows * columns)) ** 0.5)
    seen = ~hidden.repeat_interleave(cells, dim=2).repeat_interleave(cells, dim=3)
    (gradient,) = torch.autograd.grad((grid * seen.flatten(1)[..., None]).abs().sum(), images)
    return pixels & (gradient.abs().amax(dim=1, keepdim=True) == 0)


def has_stem(model: Any) -> bool:
    """True unless the embedding is one convolution over patches that do not overlap."""
    if hasattr(model, "embeds"):
        return False
    convolutions = [m for m in model.patch_embed.modules() if isinstance(m, nn.Conv2d)]
    return len(convolutions) != 1 or convolutions[0].kernel_size != convolutions[0].stride


def check_laws(encoder: MaskedViT, bare: nn.Module, images: Tensor) -> tuple[dict[str, float], str]:
    """The largest violation of each law, and a note; `bare` is the same model, never wrapped."""
    prefix, batch = encoder.num_prefix_tokens, len(images)
    tokens = ragged(encoder.grid_size, batch)
    laws: dict[str, float] = {}
    with torch.no_grad():
        plain = encoder(images)
        expected = bare.forward_features(images)
        if encoder.mask_mode == "replace":
            expected = flat(expected, encoder)
        laws["full"] = relative(plain, expected[:, prefix:])
        everything = TokenSet.full(encoder.grid_size, (batch,))
        laws["full"] = max(laws["full"], relative(encoder(images, everything), plain))

        out = encoder(images, tokens)
        if encoder.mask_mode == "drop":
            seen = torch.cat([torch.ones(batch, prefix, dtype=bool), tokens.to_mask()], dim=1)
            with hidden_keys(seen):
                masked = take_tokens(bare.forward_features(images)[:, prefix:], tokens)
            laws["masked"] = relative(out, masked)
            partial = tokens.counts() < tokens.num_positions
            if relative(take_tokens(plain, tokens)[partial], out[partial]) < 1e-3:
                raise AssertionError("hiding patches changes nothing, so nothing was tested")

        unseen = unseen_pixels_with_grad(encoder, images, tokens)
        noise = torch.where(unseen, 10 * torch.randn_like(images), images)
        note = "stem sees beyond its patch" if has_stem(bare) else ""
        if not unseen.any():
            note = "stem sees the whole image"
        laws["leak"] = float((encoder(noise, tokens) - out).abs().max())

        laws["batch"] = 0.0
        for sample in range(batch):
            alone = TokenSet.from_mask(tokens.to_mask()[sample : sample + 1], encoder.grid_size)
            one = encoder(images[sample : sample + 1], alone)[0]
            difference = (out[sample, : len(one)] - one).abs().max() / out.abs().max()
            laws["batch"] = max(laws["batch"], float(difference.nan_to_num(float("inf"))))
    laws["finite"] = not_finite(encoder, images, tokens)
    return laws, note


def unseen_pixels_with_grad(encoder: MaskedViT, images: Tensor, tokens: TokenSet) -> Tensor:
    with torch.enable_grad():
        return unseen_pixels(encoder, images, tokens)


def not_finite(encoder: MaskedViT, images: Tensor, tokens: TokenSet) -> float:
    """Return 0; infinity if an output or gradient is not finite, or padding is not zero."""
    mask = tokens.to_mask()
    mask[0] = False
    for context in (tokens, TokenSet.from_mask(mask, encoder.grid_size)):
        encoder.zero_grad()
        out = encoder(images, context)
        out.square().mean().backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        learned = sum(int(gradient.any()) for gradient in gradients if gradient.isfinite().all())
        if (
            learned < len(gradients) / 2
            or not all(torch.isfinite(part).all() for part in (out, *gradients))
            or (out[~context.valid] != 0).any()
        ):
            return float("inf")
    encoder.zero_grad()
    return 0.0


def flat(features: Tensor, encoder: MaskedViT) -> Tensor:
    """Return the output of a model of any layout as `[b n d]`."""
    if features.dim() == 3:
        return features
    rows, columns = encoder.grid_size
    if tuple(features.shape[1:3]) == (rows, columns):
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def measured(name: str, model: nn.Module, mode: str, batch: int) -> Row:
    row = Row(name, type(model).__name__, mode)
    torch.manual_seed(0)
    move(model)
    bare = copy.deepcopy(model).eval()
    encoder = MaskedViT(model, mask_mode=mode).eval()
    size = encoder._adapter.layout.image_size if mode == "replace" else None
    if size is None:
        embed = getattr(model, "patch_embed", None) or model.embeds
        ratio = embed.feat_ratio(as_scalar=False)
        size = (GRID[0] * ratio[0], GRID[1] * ratio[1])
    images = torch.randn(batch, model.in_chans, *size)
    row.laws, row.note = check_laws(encoder, bare, images)
    return row


def conform(name: str) -> Row:
    """One plain vision transformer."""
    try:
        return measured(name, plain_backbone(name), "drop", batch=3)
    except UnsupportedBackboneError as error:
        return Row(name, "?", "failed", note=str(error))
    except Exception as error:
        return Row(name, "?", "failed", note=f"{type(error).__name__}: {error}"[:200])


def other_backbone(name: str) -> nn.Module:
    """A whole model; a large one with fewer blocks or pixels where it takes them."""
    with torch.device("meta"), contextlib.suppress(Exception):
        model = timm.create_model(name, num_classes=0)
        pixels = model.pretrained_cfg["input_size"][-1]
        if pixels > 256 or sum(p.numel() for p in model.parameters()) > 1e8:
            for changes in ({"depth": 2, "img_size": 224}, {"img_size": 224}, {"depth": 2}):
                with contextlib.suppress(Exception), torch.device("cpu"):
                    return timm.create_model(name, num_classes=0, **changes)
    return timm.create_model(name, num_classes=0)


def conform_other(name: str) -> Row:
    """One model of a class that is no plain vision transformer."""
    model = other_backbone(name).eval()
    row = Row(name, type(model).__name__, "refused")
    try:
        MaskedViT(copy.deepcopy(model))
        return Row(name, row.model_class, "drop", note="unexpected")
    except UnsupportedBackboneError as error:
        row.note = str(error)
    try:
        return measured(name, model, "replace", batch=2)
    except UnsupportedBackboneError as error:
        row.note = str(error).split("it ")[1].split(";")[0]
        return row
    except Exception as error:
        return Row(name, row.model_class, "failed", note=f"{type(error).__name__}: {error}"[:200])


def plain_names() -> list[str]:
    return sorted({name for module in PLAIN for name in timm.list_models(module=module)})


def representatives() -> list[str]:
    """The smallest model of every other class, by its parameters."""
    smallest: dict[str, tuple[int, str]] = {}
    for name in sorted(set(timm.list_models()) - set(plain_names())):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=0)
        except Exception:
            model = timm.create_model(name, num_classes=0)
        count = sum(parameter.numel() for parameter in model.parameters())
        kind = f"{type(model).__module__}.{type(model).__name__}"
        smallest[kind] = min(smallest.get(kind, (count, name)), (count, name))
    return sorted(name for _, name in smallest.values())


def table(rows: list[Row]) -> str:
    lines = [
        "| name | class | mode | holds | largest difference | note |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        held = [law for law, value in row.laws.items() if value <= ALLOWED.get(law, TOLERANCE)]
        holds = "all" if len(held) == len(row.laws) > 0 else ", ".join(held)
        largest = f"{max(row.laws.values()):.0e}" if row.laws else ""
        cells = (row.name, row.model_class, row.mode, holds, largest, row.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument(
        "--which", choices=["all", "plain", "others"], default="all", help="of timm's classes"
    )
    parser.add_argument("--write", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    rows: list[Row] = []
    jobs: list[tuple[Callable[[], list[str]], Callable[[str], Row]]] = []
    if arguments.which != "others":
        jobs.append((plain_names, conform))
    if arguments.which != "plain":
        jobs.append((representatives, conform_other))
    for name, check in ((name, check) for names, check in jobs for name in names()):
        if not fnmatch.fnmatch(name, arguments.only):
            continue
        start = time.perf_counter()
        row = check(name)
        rows.append(row)
        laws = "  ".join(f"{law} {value:.0e}" for law, value in row.laws.items())
        print(
            f"{'ok  ' if row.passed else 'FAIL'} {name:48} {row.model_class:26} {row.mode:8} "
            f"{laws}  {row.note}  ({time.perf_counter() - start:.1f} s)",
            flush=True,
        )
        gc.collect()
    if not rows:
        parser.error(f"--only {arguments.only}: no model has such a name")
    failed = [row.name for row in rows if not row.passed]
    print(f"{len(rows)} models, {len(failed)} failed: {failed}")
    for mode, mode_count in Counter(row.mode for row in rows).most_common():
        classes = Counter(row.model_class for row in rows if row.mode == mode).most_common()
        print(f"{mode_count} {mode}: {', '.join(f'{count} {name}' for name, count in classes)}")
    if arguments.write:
        arguments.write.write_text(table(rows) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
