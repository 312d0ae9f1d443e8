"""Cost of a training step of jepakit, in every mode, and of the published I-JEPA recipe.

    python benchmarks/step.py --write benchmarks/results/step.json
    python benchmarks/step.py --device cuda --write benchmarks/results/step_cuda.json

Without an accelerator: numbers of tokens, multiply-adds and bytes saved for the backward pass
(counted, not run), compiled graphs, host synchronisations (on the meta device), and the time of a
step on the CPU. With `--device cuda`: images per second and share of the peak, with fused AdamW and
bfloat16 autocast. Each is one command of at most about eight minutes.

A step consists of masks, student, teacher, predictor, loss, backward, AdamW and the update of the
teacher, on random images. The published recipe is `published.py`: plain torch and timm blocks, with
the numbers of tokens of the published sampler; its masks come from the loader's workers, so they
are free here. Both sides have the same backbone, a ViT without class token, and a predictor of the
same width and depth.
"""

import argparse
import functools
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from published import PlainEncoder, PlainPredictor, make_teacher, plain_loss, update_teacher
from runs import save, unbroken
from step_costs import (
    Cost,
    CostModel,
    CountGraphs,
    CountSynchronisations,
    count,
    fake_mode,
    to_fake,
)
from timing import in_turns, seconds
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import jepakit
from jepakit import Masks, MultiBlockMask
from jepakit.masking import ReferenceMultiBlockMask
from jepakit.optim import param_groups

Row = dict[str, Any]
PUBLISHED, FIXED = "published recipe", "fixed (the default)"


class Model(NamedTuple):
    """A backbone of timm and the size of the predictor."""

    name: str
    options: dict[str, Any]
    image_size: int
    predictor_dim: int
    predictor_depth: int
    predictor_heads: int
    batch_size: int  # of the table on the accelerator


_TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
MODELS = {
    "ViT-S/16": Model("vit_small_patch16_224", {}, 224, 384, 6, 12, 256),
    "ViT-H/14": Model("vit_huge_patch14_224", {}, 224, 384, 12, 12, 64),
    # For tests, and to see that the script works: nothing is published for it.
    "tiny": Model("vit_tiny_patch16_224", _TINY, 32, 32, 1, 2, 4),
}


class Way(NamedTuple):
    """A way to compute a step."""

    title: str
    published: bool = False
    context_length: str | int = "fixed"
    joint: bool = False


def ways(grid_size: tuple[int, ...]) -> list[Way]:
    """The published recipe, jepakit in its modes, and predictors that take all blocks jointly."""
    shorter = MultiBlockMask(grid_size).min_context_tokens * 2 // 3
    return [
        Way(PUBLISHED, published=True),
        Way(FIXED),
        Way(f"an int, {shorter}", context_length=shorter),
        Way("trim", context_length="trim"),
        Way("pad", context_length="pad"),
        Way("fixed, joint", joint=True),
        Way("pad, joint", context_length="pad", joint=True),
    ]


def sampler_of(way: Way, grid_size: tuple[int, ...]) -> Callable[..., Masks]:
    """The published sampler for the published recipe, else `MultiBlockMask`."""
    if way.published:
        # The tiny model's grid is too small for the published floor of 10 tokens.
        keep = 10 if min(grid_size) > 8 else 4
        return ReferenceMultiBlockMask(grid_size, min_keep=keep)
    return MultiBlockMask(grid_size, context_length=way.context_length)


class Step:
    """Modules, loss and optimiser of one way; a call trains for one step."""

    encoder: nn.Module
    teacher: nn.Module
    predictor: nn.Module

    def __init__(self, model: Model, way: Way, device: str) -> None:
        with torch.device(device):
            torch.manual_seed(0)
            backbone = timm.create_model(
                model.name, num_classes=0, class_token=False, global_pool="", **model.options
            )
            self.grid_size: tuple[int, int] = tuple(backbone.patch_embed.grid_size)
            size = (model.predictor_dim, model.predictor_depth, model.predictor_heads)
            if way.published:
                self._build_published(backbone, *size)
            else:
                self._build_jepakit(backbone, *size, way.joint)
        self.way = way
        self.compiled_loss = torch.compile(self.loss)
        self.optimizer: torch.optim.Optimizer | None = None

    def _build_published(self, backbone: Any, dim: int, depth: int, heads: int) -> None:
        self.encoder = PlainEncoder(backbone)
        self.teacher = make_teacher(self.encoder)
        width = backbone.embed_dim
        self.predictor = PlainPredictor(self.grid_size, width, dim, depth, heads)

    def _build_jepakit(self, backbone: Any, dim: int, depth: int, heads: int, joint: bool) -> None:
        self.encoder = jepakit.MaskedViT(backbone)
        self.teacher = jepakit.EMATeacher(self.encoder, 0.996)
        self.predictor = jepakit.MaskedPredictor(
            self.grid_size,
            self.encoder.embed_dim,
            predictor_embed_dim=dim,
            depth=depth,
            num_heads=heads,
            joint=joint,
        )

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return self.encoder, self.teacher, self.predictor

    def loss(self, images: Tensor, masks: Masks) -> Tensor:
        context, targets = masks.context, masks.targets
        if self.way.published:
            blocks = targets.idx.unbind(1)
            return plain_loss(*self.modules, images, context.idx, blocks)
        target = jepakit.take_tokens(jepakit.normalize_targets(self.teacher(images)), targets)
        pred = self.predictor(self.encoder(images, context), context, targets)
        return jepakit.masked_smooth_l1(pred, target, targets.valid)

    def update_teacher(self) -> None:
        if self.way.published:
            update_teacher(self.teacher, self.encoder, 0.996)
        else:
            self.teacher.update(self.encoder)

    def __call__(
        self, images: Tensor, masks: Masks, *, amp: bool = False, compiled: bool = False
    ) -> None:
        if self.optimizer is None:
            learned = nn.ModuleList([self.encoder, self.predictor])
            # The published code calls AdamW with torch's defaults.
            fused = {"fused": True} if images.is_cuda else {}
            self.optimizer = torch.optim.AdamW(param_groups(learned, 0.05), lr=1e-4, **fused)
        precision = torch.autocast(images.device.type, torch.bfloat16) if amp else nullcontext()
        with precision:
            if compiled:
                loss = self.compiled_loss(images, mark_lengths(masks))
            else:
                loss = self.loss(images, masks)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.update_teacher()


# Counts: tokens, multiply-adds, bytes, graphs, host synchronisations.


@functools.cache
def cost_model(name: str, published: bool, joint: bool, padded: bool) -> CostModel:
    """Count the cost at a few sizes of context and target; `padded` contexts carry a mask."""
    model = MODELS[name]
    step = Step(model, Way("", published=published, joint=joint), "meta")
    height, width = step.grid_size
    size = height * width
    sides = [(size // 4, size // 8), (size // 2, size // 8), (size // 3, size // 8)]
    sides += [(size // 4, size // 6), (size // 4, size // 4), (size // 2, size // 4)]
    with fake_mode():
        for module in step.modules:
            to_fake(module)
        images = torch.randn(2, 3, model.image_size, model.image_size)

    def count_at(n: int, k: int) -> Cost:
        masks = masks_of_lengths(step.grid_size, n, k, padded)
        with fake_mode_of(images):
            return count(lambda: step.loss(images, masks), step.modules, len(images))

    return CostModel(count_at, [*sides, (size // 3 + 1, size // 6 + 1)])


def fake_mode_of(tensor: Tensor) -> Any:
    """The mode that a fake tensor belongs to."""
    return tensor.fake_mode  # type: ignore[attr-defined]


def masks_of_lengths(grid_size: tuple[int, ...], n: int, k: int, padded: bool) -> Masks:
    """Masks of two samples with n context tokens and four blocks of k; which ones is no matter."""

    def first(count: int, *batch: int) -> jepakit.TokenSet:
        idx = torch.arange(count).expand(*batch, count).contiguous()
        valid = torch.ones_like(idx, dtype=torch.bool)
        return jepakit.TokenSet(idx, valid, grid_size, padded and len(batch) == 1)

    return Masks(first(n, 2), first(k, 2, 4))


@functools.cache
def token_counts(
    sampler: Callable[..., Masks], batch_size: int, draws: int
) -> list[tuple[int, int]]:
    """Lengths of context and target, padding included, in the batches of some seeds."""
    drawn = (
        sampler(batch_size, generator=torch.Generator().manual_seed(seed)) for seed in range(draws)
    )
    return [(masks.context.shape[-1], masks.targets.shape[-1]) for masks in drawn]


def costs_of(name: str, way: Way, counts: list[tuple[int, int]]) -> Cost:
    """Mean cost of batches with these numbers of tokens."""
    padded = way.context_length == "pad" and not way.published
    return cost_model(name, way.published, way.joint, padded).mean(counts)


def mark_lengths(masks: Masks) -> Masks:
    """Declare that lengths change, so that the compiler makes them symbols in its first graph."""
    for tokens in (masks.context, masks.targets):
        for tensor in (tokens.idx, tokens.valid):
            torch._dynamo.maybe_mark_dynamic(tensor, tensor.dim() - 1)
    return masks


def graphs_compiled(model: Model, way: Way, batch_size: int, steps: int, *, marked: bool) -> int:
    """Graphs of the loss over some steps; with a shallow model, whose depth changes nothing."""
    step, backend = Step(model, way, "cpu"), CountGraphs()
    sampler, generator = sampler_of(way, step.grid_size), torch.Generator().manual_seed(0)
    images = torch.zeros(batch_size, 3, model.image_size, model.image_size)
    torch._dynamo.reset()
    compute = torch.compile(step.loss, backend=backend, fullgraph=True)
    for _ in range(steps):
        masks = sampler(batch_size, generator=generator)
        compute(images, mark_lengths(masks) if marked else masks)
    torch._dynamo.reset()
    return backend.graphs


def host_synchronisations(model: Model, way: Way, batch_size: int) -> list[str]:
    """List what would make the host wait for the accelerator in one step, on the meta device.

    jepakit's sampler is called in the step; the loader's workers draw the published masks.
    """
    step = Step(model, way, "meta")
    size = step.grid_size[0] * step.grid_size[1]
    images = torch.zeros(batch_size, 3, model.image_size, model.image_size, device="meta")
    sampler = sampler_of(way, step.grid_size)
    with CountSynchronisations(answer=size // 3) as counter:
        step(images, sampler(batch_size, device="meta"))
    return counter.found


def shallow(model: Model) -> Model:
    """The same grid with one narrow block each, for what does not depend on depth and width."""
    options = {**model.options, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return model._replace(options=options, predictor_dim=32, predictor_depth=1, predictor_heads=2)


def cost_rows(name: str, batch_sizes: list[int], draws: int) -> Iterator[Row]:
    """Tokens, multiply-adds and bytes of every way."""
    grid_size = Step(MODELS[name], Way(""), "meta").grid_size
    for way in ways(grid_size):
        for batch_size in batch_sizes:
            counts = token_counts(sampler_of(way, grid_size), batch_size, draws)
            context, target = (statistics.mean(lengths) for lengths in zip(*counts, strict=True))
            row = {"kind": "cost", "model": name, "grid_size": grid_size, "name": way.title}
            row |= {"batch_size": batch_size, "context": context, "target": target}
            yield row | costs_of(name, way, counts)._asdict()


def graph_rows(name: str, batch_size: int, steps: int) -> Iterator[Row]:
    """Compiled graphs and host synchronisations of every way."""
    model = shallow(MODELS[name])
    grid_size = Step(model, Way(""), "meta").grid_size
    for way in ways(grid_size):
        row = {"kind": "graphs", "model": name, "name": way.title, "batch_size": batch_size}
        row |= {"steps": steps}
        for key, marked in (("graphs", False), ("graphs_marked", True)):
            row[key] = graphs_compiled(model, way, batch_size, steps, marked=marked)
        row["synchronisations"] = host_synchronisations(model, way, batch_size)
        yield row


# Time on the CPU.


def typical_seed(sampler: Callable[..., Masks], batch_size: int, draws: int) -> int:
    """The seed among some whose masks have the most usual numbers of tokens."""
    lengths = token_counts(sampler, batch_size, draws)
    means = [statistics.mean(values) for values in zip(*lengths, strict=True)]
    return min(range(draws), key=lambda seed: math.dist(lengths[seed], means))


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def time_rows(
    name: str, batch_size: int, rounds: int, draws: int, clock: str = "wall"
) -> Iterator[Row]:
    """Seconds of a step on the CPU in interleaved rounds.

    Masks have the typical numbers of tokens of each way and are the same in every round. jepakit
    draws them within the step.
    """
    model = MODELS[name]
    plain = Step(model, Way("", published=True), "cpu")
    separate, joint = Step(model, Way(""), "cpu"), Step(model, Way("", joint=True), "cpu")
    grid_size = plain.grid_size
    images = torch.randn(batch_size, 3, model.image_size, model.image_size)
    by_title = {way.title: way for way in ways(grid_size)}
    fixed, published = by_title[FIXED], by_title[PUBLISHED]
    seeds = {
        way: typical_seed(sampler_of(way, grid_size), batch_size, draws)
        for way in (published, fixed, by_title["pad"])
    }

    def draw(way: Way) -> Masks:
        generator = torch.Generator().manual_seed(seeds[way])
        return sampler_of(way, grid_size)(batch_size, generator=generator)

    def drawing(step: Step, way: Way, compiled: bool = False) -> Callable[[], None]:
        return lambda: step(images, draw(way), compiled=compiled)

    published_masks, fixed_masks = draw(published), draw(fixed)
    calls = {
        PUBLISHED: functools.partial(plain, images, published_masks),
        f"{PUBLISHED}, masks of fixed": functools.partial(plain, images, fixed_masks),
        FIXED: drawing(separate, fixed),
        "pad": drawing(separate, by_title["pad"]),
        "fixed, joint": drawing(joint, fixed),
        f"{PUBLISHED}, compiled": functools.partial(plain, images, published_masks, compiled=True),
        "fixed, compiled": drawing(separate, fixed, compiled=True),
    }
    times = in_turns(calls, rounds, torch.device("cpu"), clock=CLOCKS[clock])
    for title, values in times.items():
        row = {"kind": "time", "model": name, "name": title, "batch_size": batch_size}
        row |= {"threads": torch.get_num_threads(), "clock": clock, "seconds": values}
        for of in (PUBLISHED, f"{PUBLISHED}, compiled"):
            ratios = [a / b for a, b in zip(values, times[of], strict=True)]
            row["ratio" if of == PUBLISHED else "ratio_compiled"] = statistics.median(ratios)
        yield row


# Throughput on an accelerator.

# Vendors' figures for dense products in bfloat16, in Tflop/s, by a part of the device's name.
PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362}


def throughput_rows(
    name: str, device: torch.device, *, peak_tflops: float | None, deadline: float, rounds: int
) -> Iterator[Row]:
    """Images per second of every way that is affordable before the deadline, in `time.monotonic`.

    A way that fails (for want of memory, say) becomes a row with the error.
    """
    model = MODELS[name]
    images = torch.randn(model.batch_size, 3, model.image_size, model.image_size, device=device)
    grid_size = Step(model, Way(""), "meta").grid_size
    by_title = {way.title: way for way in ways(grid_size)}
    published, fixed = by_title[PUBLISHED], by_title[FIXED]
    eager = [(way, False) for way in (published, fixed, by_title["pad"], by_title["fixed, joint"])]
    # Most important first: the last ones are left out when time is short.
    compiled = [(way, True) for way in (fixed, published, by_title["fixed, joint"])]
    torch._dynamo.reset()  # its cache of the loss has few places

    @functools.cache
    def step_of(published: bool, joint: bool) -> Step:
        """Modules are shared by what differs in its masks only, to save memory."""
        return Step(model, Way("", published=published, joint=joint), str(device))

    rows: dict[tuple[Way, bool], Row] = {}
    calls: dict[str, Callable[[], None]] = {}
    for way, is_compiled in [*eager, *compiled]:
        counts = token_counts(sampler_of(way, grid_size), model.batch_size, 20)
        row: Row = {"kind": "throughput", "model": name, "batch_size": model.batch_size}
        row |= {"name": way.title, "compiled": is_compiled, "error": None}
        row |= {"flops_per_image": 2 * costs_of(name, way, counts).multiply_adds}
        rows[way, is_compiled] = row
        if is_compiled and time.monotonic() > deadline - 120:
            row["error"] = "not measured: no time left"
            continue
        try:
            call = training(step_of(way.published, way.joint), way, images, compiled=is_compiled)
            row |= warm_up(call, device, compiled=is_compiled)
        except Exception as error:
            row["error"] = failure(error)
            continue
        calls[str(len(rows) - 1)] = call
    try:
        one_round = sum(seconds(call, device) for call in calls.values())
        repeats = max(1, min(10, int(3 / max(one_round, 0.01))))
        affordable = int((deadline - time.monotonic()) / (one_round * repeats or 1)) - 1
        times = in_turns(calls, max(1, min(rounds, affordable)), device, repeats=repeats)
    except Exception as error:
        for row in rows.values():
            row["error"] = row["error"] or failure(error)
        times = {}
    for number, row in enumerate(rows.values()):
        if str(number) in times:
            row["seconds"] = times[str(number)]
            row["images_per_second"] = model.batch_size / statistics.median(row["seconds"])
            flops = row["flops_per_image"] * row["images_per_second"]
            row["peak_ratio"] = flops / peak_tflops / 1e12 if peak_tflops else None
        yield row


def failure(error: Exception) -> str:
    """The first line of an error, for a cell of the table."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:80]}".replace("|", "/")


def training(step: Step, way: Way, images: Tensor, *, compiled: bool = False) -> Callable[[], None]:
    """A step under bfloat16 autocast; jepakit draws masks in it, the loader those of published."""
    sampler, batch_size = sampler_of(way, step.grid_size), len(images)
    train = functools.partial(step, images, amp=True, compiled=compiled)
    if not way.published:
        return lambda: train(sampler(batch_size, device=images.device))
    drawn = itertools.cycle([sampler(batch_size, device=images.device) for _ in range(20)])
    return lambda: train(next(drawn))


def warm_up(call: Callable[[], None], device: torch.device, *, compiled: bool) -> Row:
    """Run and compile, then find memory, flash kernels and host synchronisations of a step."""
    start = time.monotonic()
    for _ in range(4):
        call()
    row: Row = {"warm_up_seconds": time.monotonic() - start}
    if not compiled:
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                call()
            row["flash"] = True
        except RuntimeError:  # no available kernel
            row["flash"] = False
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # weights and optimisers, of other ways too
        call()
        row["peak_gib"] = (torch.cuda.max_memory_allocated(device) - before) / 2**30
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
            row["synchronises"] = False
        except RuntimeError:
            row["synchronises"] = True
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return row


# Tables.


def table(rows: list[Row]) -> str:
    """One small table for each model and each quantity."""
    parts = []
    for kind, make in TABLES.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        for model in dict.fromkeys(row["model"] for row in of_kind):
            parts += make(model, [row for row in of_kind if row["model"] == model])
    return "\n\n".join(parts)


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table; its first head says what it is about. Cells with numbers stay in one line."""
    lines = [
        ["---"] * len(head),
        *([unbroken(cell) if cell[:1].isdigit() else cell for cell in line] for line in lines),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, *lines))


def cost_tables(model: str, rows: list[Row]) -> list[str]:
    """Tokens, multiply-adds and bytes by batch size."""
    batches = list(dict.fromkeys(row["batch_size"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    cell = {(row["name"], row["batch_size"]): row for row in rows}
    grid = " x ".join(map(str, rows[0]["grid_size"]))
    title = f"{model}, {grid} tokens"

    def of(key: str, show: Callable[[Row], str]) -> str:
        lines = [[name, *[show(cell[name, batch]) for batch in batches]] for name in names]
        return markdown(
            [f"{title}: {key}", *[unbroken(f"batch {batch}") for batch in batches]], lines
        )

    def with_ratio(key: str, unit: float) -> Callable[[Row], str]:
        def show(row: Row) -> str:
            ratio = row[key] / cell[PUBLISHED, row["batch_size"]][key]
            return f"{row[key] / unit:.1f} ({ratio:.2f})"

        return show

    return [
        of("tokens of context + targets", lambda r: f"{r['context']:.1f} + 4 x {r['target']:.1f}"),
        of("multiply-adds per image, 10⁹ (of published)", with_ratio("multiply_adds", 1e9)),
        of("MiB per image for the backward pass (of published)", with_ratio("saved_bytes", 2**20)),
    ]


def graph_table(model: str, rows: list[Row]) -> list[str]:
    steps, batch = rows[0]["steps"], rows[0]["batch_size"]
    head = [f"{model}, batch {batch}", f"graphs in {steps} steps", "lengths marked as dynamic"]
    head += ["host synchronisations"]
    lines = [
        [
            row["name"],
            *map(str, (row["graphs"], row["graphs_marked"], len(row["synchronisations"]))),
        ]
        for row in rows
    ]
    return [markdown(head, lines)]


def time_table(model: str, rows: list[Row]) -> list[str]:
    first = rows[0]
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    head = [f"{model} on the CPU, batch {first['batch_size']}, {threads}"]
    head += [f"seconds per step ({first['clock']} time)", "of published", "of published, compiled"]
    lines = []
    for row in rows:
        numbers = statistics.median(row["seconds"]), row["ratio"], row["ratio_compiled"]
        lines.append([row["name"], *(f"{number:.2f}" for number in numbers)])
    return [markdown(head, lines)]


def throughput_table(model: str, rows: list[Row]) -> list[str]:
    head = [f"{model}, batch {rows[0]['batch_size']}", "images/s", "of published, eager"]
    head += ["of the peak", "GiB beyond weights", "flash kernels only", "synchronises"]
    base = rows[0].get("images_per_second")
    lines = []
    for row in rows:
        name = row["name"] + (", compiled" if row["compiled"] else "")
        if row["error"]:
            lines.append([name, row["error"], *[""] * 5])
            continue
        speed, peak = row["images_per_second"], row["peak_ratio"]
        cells = [f"{speed:,.0f}", f"{speed / base:.2f}" if base else ""]
        cells.append("" if peak is None else f"{100 * peak:.0f} %")
        cells.append(f"{row['peak_gib']:.1f}" if "peak_gib" in row else "")
        words = {True: "yes", False: "no"}
        cells += [words.get(row.get(key), "") for key in ("flash", "synchronises")]  # type: ignore[call-overload]
        lines.append([name, *cells])
    return [markdown(head, lines)]


TABLES: Mapping[str, Callable[[str, list[Row]], list[str]]] = {
    "cost": cost_tables,
    "graphs": graph_table,
    "time": time_table,
    "throughput": throughput_table,
}


def main() -> None:
    args = parse_args()
    args.data, args.seeds = "random images", [0]
    device = torch.device(args.device)
    rows: list[Row] = []
    start = time.monotonic()
    if device.type != "cpu" or args.throughput:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
        peak = args.peak_tflops or peak_of(device)
        for number, name in enumerate(args.models, start=1):
            # Equal parts of seven minutes; what a model leaves is for the next one.
            deadline = start + 60 * args.minutes * number / len(args.models)
            rows += throughput_rows(
                name, device, peak_tflops=peak, deadline=deadline, rounds=args.rounds
            )
        values = f"bfloat16 autocast, TF32, peak {peak} Tflop/s; medians of the rounds"
    else:
        for name in args.models:
            rows += cost_rows(name, args.batch_sizes, args.draws)
        first = args.models[0]
        if args.steps:
            rows += graph_rows(first, args.batch_sizes[0], args.steps)
        if args.time_batch_size:
            rows += time_rows(first, args.time_batch_size, args.rounds, args.draws, args.clock)
        values = f"means over {args.draws} batches; times are medians of {args.rounds} rounds"
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    save(args, rows, table, args.device, values)


def peak_of(device: torch.device) -> float | None:
    """The vendor's figure for a known device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", choices=list(MODELS), default=["ViT-S/16", "ViT-H/14"])
    add("--batch-sizes", type=int, nargs="+", default=[8, 64, 256], help="of the counts")
    add("--draws", type=int, default=200, help="batches over which tokens are averaged")
    add("--steps", type=int, default=50, help="steps over which graphs are counted; 0: none")
    add("--time-batch-size", type=int, default=16, help="of the times on the CPU; 0: none")
    add("--rounds", type=int, default=5, help="rounds of timing")
    add("--device", default="cpu", help="an accelerator: measure throughput on it")
    add("--throughput", action="store_true", help="measure that on the CPU too")
    add("--peak-tflops", type=float, help="peak of the device; default: known for some")
    add("--minutes", type=float, default=7, help="limit for the throughput, about")
    add("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    add(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: of one thread, on a busy machine",
    )
    add("--write", type=Path, help="result file, .json; the table is written beside it")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads > 1:
        parser.error("--clock cpu adds up the time of all threads: use --threads 1")
    torch.set_num_threads(args.threads)
    return args


if __name__ == "__main__":
    main()
