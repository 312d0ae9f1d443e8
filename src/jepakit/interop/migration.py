"""`migrate_config`: jepakit code for a configuration file of I-JEPA or V-JEPA, key by key."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any, Literal

from jepakit._checks import type_name

__all__ = ["ConfigKey", "MigratedConfig", "migrate_config"]

Outcome = Literal["carried over", "set elsewhere", "no counterpart", "unknown"]

# embed_dim, depth, num_heads and mlp_ratio of the published code's models.
_MODELS = {
    "vit_tiny": (192, 12, 3, "4.0"),
    "vit_small": (384, 12, 6, "4.0"),
    "vit_base": (768, 12, 12, "4.0"),
    "vit_large": (1024, 24, 16, "4.0"),
    "vit_huge": (1280, 32, 16, "4.0"),
    "vit_giant": (1408, 40, 16, "48 / 11"),
}
_UNKNOWN = "not a key of the published code; the printed code does not use it"


@dataclass(frozen=True)
class ConfigKey:
    """One key of a configuration file.

    Args:
        name: Path of the key, as in `"optimization.lr"`; `"mask.0.num_blocks"` in a list.
        value: Its value in the file.
        outcome: `"carried over"`: the printed code has it. `"set elsewhere"`: it belongs to the
            launcher, the logger or the data. `"no counterpart"`: jepakit has nothing for it.
            `"unknown"`: the published code has no such key.
        note: Where it went, or why it did not.

    Example:
        >>> from jepakit.interop import ConfigKey
        >>> ConfigKey("optimization.lr", 1e-3, "carried over", "peak of lr").name
        'optimization.lr'
    """

    name: str
    value: Any
    outcome: Literal["carried over", "set elsewhere", "no counterpart", "unknown"]
    note: str


@dataclass(frozen=True)
class MigratedConfig:
    """Code for a configuration file, and an account of each of its keys.

    Args:
        code: Python code: parts, schedules, data and the training loop.
        keys: All keys of the file, in its order.
        differences: What the printed code does in another way than the published one.

    Example:
        >>> from jepakit.interop import ConfigKey, MigratedConfig
        >>> key = ConfigKey("optimization.lr", 1e-3, "carried over", "peak of lr")
        >>> print(MigratedConfig("lr = 1e-3", (key,), ()))
        lr = 1e-3
        # Keys of the file
        # optimization.lr = 0.001: carried over; peak of lr
        <BLANKLINE>
        # Differences in any case
        <BLANKLINE>
    """

    code: str
    keys: tuple[ConfigKey, ...]
    differences: tuple[str, ...]

    def __str__(self) -> str:
        """The code, followed by comments on keys and differences."""
        lines = [f"# {k.name} = {k.value!r}: {k.outcome}; {k.note}" for k in self.keys]
        notes = [f"# - {difference}" for difference in self.differences]
        return "\n".join(
            [self.code, "# Keys of the file", *lines, "", "# Differences in any case", *notes, ""]
        )


def migrate_config(config: Mapping[str, Any]) -> MigratedConfig:
    """Translate a pretraining configuration of the published I-JEPA or V-JEPA into jepakit code.

    A file whose `mask` is a list is V-JEPA's, another one I-JEPA's. No key is dropped silently:
    each is in `keys` with what became of it. From a shell, with PyYAML installed:
    `python -m jepakit.interop config.yaml`.

    Args:
        config: The content of the file, as `yaml.safe_load` gives it.

    Raises:
        ValueError: If a key that the code needs is missing, a model is not one of the published
            code's, or `loss_exp` is neither 1 nor 2.

    Example:
        >>> from jepakit.interop import migrate_config
        >>> config = {
        ...     "data": {"batch_size": 128, "crop_size": 224, "root_path": "images"},
        ...     "mask": {"patch_size": 14, "min_keep": 10, "num_heads": 3},
        ...     "meta": {"model_name": "vit_huge", "pred_depth": 12, "pred_emb_dim": 384},
        ...     "optimization": {"epochs": 300, "lr": 1e-3, "ema": [0.996, 1.0]},
        ... }
        >>> migrated = migrate_config(config)
        >>> "MultiBlockMask.from_ijepa_config" in migrated.code
        True
        >>> [key.name for key in migrated.keys if key.outcome == "unknown"]
        ['mask.num_heads']

    Source:
        Keys and defaults as the published code of I-JEPA (arXiv:2301.08243) and of V-JEPA
        (arXiv:2404.08471) reads them, in `src/train.py` and `app/vjepa/train.py`.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config: must be a mapping, got {type_name(config)}")
    reader = _Reader(config)
    if _is_list(config.get("mask")):
        return _vjepa(reader)
    return _ijepa(reader)


class _Reader:
    """The values of a file by path, and what became of each."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.values = dict(_leaves(config, ""))
        self.outcomes: dict[str, tuple[Outcome, str]] = {}

    def carry(self, name: str, note: str, *default: Any) -> Any:
        """Value of a key that the code has; without a default the file must have it."""
        self._note(name, "carried over", note)
        if name in self.values:
            return self.values[name]
        if not default:
            raise ValueError(f"config: must have the key {name}")
        return default[0]

    def elsewhere(self, note: str, *names: str) -> None:
        for name in names:
            self._note(name, "set elsewhere", note)

    def without(self, note: str, *names: str) -> None:
        for name in names:
            self._note(name, "no counterpart", note)

    def _note(self, name: str, outcome: Outcome, note: str) -> None:
        self.outcomes[name] = (outcome, note)

    def migrated(self, code: str, differences: Sequence[str]) -> MigratedConfig:
        keys = [
            ConfigKey(name, value, *self.outcomes.get(name, ("unknown", _UNKNOWN)))
            for name, value in self.values.items()
        ]
        return MigratedConfig(code.strip() + "\n", tuple(keys), tuple(differences))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Paths and values; a list is entered if it holds mappings, as V-JEPA's `mask` does."""
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif _is_list(value) and value and all(isinstance(item, Mapping) for item in value):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        yield path, value
        return
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}" if path else key)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


# What both have


def _model(reader: _Reader, name: str) -> tuple[int, int, int, str]:
    model = reader.carry(name, "the encoder's width, depth and heads; the predictor's heads")
    if model not in _MODELS:
        raise ValueError(f"{name}={model!r}: must be one of {list(_MODELS)}")
    return _MODELS[model]


def _schedules(reader: _Reader) -> str:
    """Lines for steps, learning rate, weight decay and momentum, after `steps_per_epoch`."""
    section = "optimization"
    epochs = reader.carry(f"{section}.epochs", "steps")
    scale = reader.carry(f"{section}.ipe_scale", "schedules are as much longer than the run", 1.0)
    warmup = reader.carry(f"{section}.warmup", "warmup_steps; epochs there, steps here", 0)
    lr = float(reader.carry(f"{section}.lr", "peak of lr"))
    start_lr = float(reader.carry(f"{section}.start_lr", "start of lr", 0.0)) if warmup else 0.0
    final_lr = float(reader.carry(f"{section}.final_lr", "end of lr", 0.0))
    decay = float(reader.carry(f"{section}.weight_decay", "start of weight_decay", 0.0))
    final_decay = float(reader.carry(f"{section}.final_weight_decay", "its end", decay))
    start, end = reader.carry(f"{section}.ema", "momentum, linear per step", (0.996, 1.0))
    if not warmup:
        reader.without("has no effect without a warm-up", f"{section}.start_lr")
    return f"""\
steps = {epochs} * steps_per_epoch
schedule_steps = int({scale} * steps)
lr = warmup_cosine(
    {lr},
    {final_lr},
    start={start_lr},
    warmup_steps=int({warmup} * steps_per_epoch),
    steps=schedule_steps,
)
weight_decay = cosine({decay}, {final_decay}, steps=schedule_steps)
teacher = EMATeacher(encoder, momentum=linear({start}, {end}, steps=schedule_steps))"""


_GROUPS = """\
    for group in optimizer.param_groups:
        group["lr"] = lr(step + 1)
        if group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay(step + 1)"""

_DIFFERENCES = (
    "Contexts keep their promised minimum after batching, and are shortened without a preferred "
    "place; scale and aspect ratio are independent; random numbers are a function of seed, epoch "
    "and index.",
    "Linear layers are initialised by timm or jepakit; the published code also divides the last "
    "weights of block number l by sqrt(2 l).",
    "The mask token is not decayed (param_groups); there it is.",
    "No gradient scaler: bfloat16 needs none.",
    "Buffers of the teacher are copied, and its weights stay in float32.",
)


# I-JEPA


def _ijepa(reader: _Reader) -> MigratedConfig:
    crop = reader.carry("data.crop_size", "img_size and the size of crops", 224)
    patch = reader.carry("mask.patch_size", "patch_size", 16)
    width, depth, heads, mlp_ratio = _model(reader, "meta.model_name")
    predictor_width = reader.carry("meta.pred_emb_dim", "predictor_embed_dim")
    predictor_depth = reader.carry("meta.pred_depth", "depth of the predictor")
    batch_size = reader.carry("data.batch_size", "batch_size, of each process")
    workers = reader.carry("data.num_workers", "num_workers", 0)
    pin_memory = bool(reader.carry("data.pin_mem", "pin_memory", False))
    root = reader.carry("data.root_path", "path of the images", "")
    folder = reader.carry("data.image_folder", "path of the images", "")
    path = posixpath.join(str(root), str(folder), "train")
    half = bool(reader.carry("meta.use_bfloat16", "torch.autocast", False))

    sampler = []
    for argument, name, key, default in (
        ("enc_mask_scale", "enc_mask_scale", "context_scale", (0.85, 1.0)),
        ("pred_mask_scale", "pred_mask_scale", "target_scale", (0.15, 0.2)),
        ("aspect_ratio", "aspect_ratio", "target_aspect_ratio", (0.75, 1.5)),
        ("npred", "num_pred_masks", "num_targets", 4),
        ("min_keep", "min_keep", "a floor of min_keep / N tokens", 10),
    ):
        value = reader.carry(f"mask.{name}", f"{key} of the sampler", default)
        value = tuple(value) if _is_list(value) else value
        sampler.append(f"    {argument}={value},")
    if reader.carry("mask.num_enc_masks", "one context for each image", 1) != 1:
        note = "the printed code has one context; call the sampler once for each"
        reader.without(note, "mask.num_enc_masks")
    if reader.carry("mask.allow_overlap", "the context never contains its targets", False):
        reader.without("a context never contains its targets", "mask.allow_overlap")

    reader.elsewhere("your logger, and jepakit.checkpoints", "logging.folder", "logging.write_tag")
    note = "load_ijepa and jepakit.checkpoints; see the page on resuming"
    reader.elsewhere(note, "meta.load_checkpoint", "meta.read_checkpoint")
    reader.elsewhere("copy the files before the run", "meta.copy_data")
    schedules = _schedules(reader)
    code = f"""\
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from jepakit import EMATeacher, IndexedDataset, MaskCollator, MaskedPredictor, MaskedViT
from jepakit import MultiBlockMask, cosine, linear, masked_smooth_l1, normalize_targets
from jepakit import take_tokens, warmup_cosine
from jepakit.data import ResumableBatches
from jepakit.nn import init_sincos_positions
from jepakit.optim import param_groups

rank, world_size = 0, 1  # the file does not hold the number of processes
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Data
transform = transforms.Compose(
    [
{_transform(reader, crop)}
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
dataset = ImageFolder({path!r}, transform)
batch_size = {batch_size}
steps_per_epoch = len(dataset) // (batch_size * world_size)

# Models
torch.manual_seed(0)
backbone = timm.models.VisionTransformer(
    img_size={crop},
    patch_size={patch},
    embed_dim={width},
    depth={depth},
    num_heads={heads},
    mlp_ratio={mlp_ratio},
    class_token=False,
    global_pool="avg",
    fc_norm=False,
    num_classes=0,
)
encoder = MaskedViT(backbone).to(device)
init_sincos_positions(encoder)
encoder.backbone.pos_embed.requires_grad_(False)  # fixed, as in the published code
predictor = MaskedPredictor(
    encoder.grid_size,
    encoder.embed_dim,
    predictor_embed_dim={predictor_width},
    depth={predictor_depth},
    num_heads={heads},
).to(device)
student = nn.ModuleDict({{"encoder": encoder, "predictor": predictor}})

# Masks
sampler = MultiBlockMask.from_ijepa_config(
    encoder.grid_size,
{chr(10).join(sampler)}
)

# Schedules, teacher and optimiser
{schedules}
optimizer = torch.optim.AdamW(param_groups(student, weight_decay=weight_decay(1)))

# Loop
order = ResumableBatches(
    len(dataset), batch_size, steps=steps, seed=0, rank=rank, world_size=world_size
)
loader = DataLoader(
    IndexedDataset(dataset),
    batch_sampler=order,
    num_workers={workers},
    pin_memory={pin_memory},
    collate_fn=MaskCollator(sampler, seed=0),
)
for step, ((images, *_), masks) in enumerate(loader):
    images, masks = images.to(device), masks.to(device)
{_GROUPS}
    with torch.autocast(device.type, torch.bfloat16, enabled={half}):
        target = take_tokens(normalize_targets(teacher(images)), masks.targets)
        context = encoder(images, masks.context)
        pred = predictor(context, masks.context, masks.targets)
        loss = masked_smooth_l1(pred, target, masks.targets.valid)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    teacher.update(encoder)
"""
    return reader.migrated(code, _DIFFERENCES)


def _transform(reader: _Reader, crop: int) -> str:
    """Lines of the published transform before the normalisation."""
    scale = tuple(reader.carry("data.crop_scale", "RandomResizedCrop", (0.3, 1.0)))
    lines = [f"transforms.RandomResizedCrop({crop}, scale={scale}),"]
    if reader.carry("data.use_horizontal_flip", "RandomHorizontalFlip if true", False):
        lines.append("transforms.RandomHorizontalFlip(),")
    strength = float(reader.carry("data.color_jitter_strength", "strength of ColorJitter", 1.0))
    if reader.carry("data.use_color_distortion", "ColorJitter and grey if true", False):
        jitter = ", ".join(f"{part * strength:.3g}" for part in (0.8, 0.8, 0.8, 0.2))
        lines.append(f"transforms.RandomApply([transforms.ColorJitter({jitter})], p=0.8),")
        lines.append("transforms.RandomGrayscale(p=0.2),")
    else:
        reader.without("has no effect without a distortion", "data.color_jitter_strength")
    if reader.carry("data.use_gaussian_blur", "GaussianBlur if true", False):
        blur = "transforms.GaussianBlur(23, sigma=(0.1, 2.0))"
        lines.append(f"transforms.RandomApply([{blur}], p=0.5),")
    return "\n".join(f"        {line}" for line in lines)


# V-JEPA


def _vjepa(reader: _Reader) -> MigratedConfig:
    crop = reader.carry("data.crop_size", "image_size", 224)
    patch = reader.carry("data.patch_size", "Tubelets")
    frames = reader.carry("data.num_frames", "num_frames")
    tubelet = reader.carry("data.tubelet_size", "Tubelets")
    frame_step = reader.carry("data.sampling_rate", "frame_step", 1)
    width, depth, heads, mlp_ratio = _model(reader, "model.model_name")
    predictor_width = reader.carry("model.pred_embed_dim", "predictor_embed_dim")
    predictor_depth = reader.carry("model.pred_depth", "depth of the predictor")
    uniform = bool(reader.carry("model.uniform_power", "uniform_power of both", True))
    zeros = reader.carry("model.zero_init_mask_tokens", "nn.init.zeros_", True)
    if not reader.carry("model.use_mask_tokens", "mask tokens, one for each set", True):
        note = "jepakit's predictor has mask tokens; noised targets in their place it has not"
        reader.without(note, "model.use_mask_tokens")
    batch_size = reader.carry("data.batch_size", "batch_size, of each process")
    workers = reader.carry("data.num_workers", "num_workers", 1)
    pin_memory = bool(reader.carry("data.pin_mem", "pin_memory", False))
    half = reader.carry("meta.dtype", "torch.autocast", "float32")
    if half == "float16":
        reader.without("float16 needs a gradient scaler; the code uses bfloat16", "meta.dtype")
    seed = reader.carry("meta.seed", "seed of weights, batches and masks", 0)
    exponent = float(reader.carry("loss.loss_exp", "the loss", 1.0))
    losses = {1.0: "masked_l1", 2.0: "0.5 * masked_mse"}
    if exponent not in losses:
        raise ValueError(f"loss.loss_exp={exponent}: must be 1 or 2; write another loss yourself")
    loss = losses[exponent]
    if reader.carry("loss.reg_coeff", "no term, as its weight is 0", 0.0):
        note = "the variance of predictions over the tokens of a clip; add your own term"
        reader.without(note, "loss.reg_coeff")
    clip = reader.carry("optimization.clip_grad", "clip_grad_norm_ after the warm-up", None)
    betas = tuple(reader.carry("optimization.betas", "AdamW", (0.9, 0.999)))
    eps = float(reader.carry("optimization.eps", "AdamW", 1e-8))
    per_epoch = reader.carry("optimization.ipe", "steps_per_epoch", None)
    per_epoch = "len(dataset) // (batch_size * world_size)" if per_epoch is None else per_epoch
    schedules = _schedules(reader)
    warmup = reader.values.get("optimization.warmup", 0)
    _other_vjepa_keys(reader)
    sets = _mask_sets(reader, frames // tubelet)
    zero_line = "nn.init.zeros_(predictor.mask_token)\n" if zeros else ""
    clip_lines = (
        f"""\
    if step >= ({warmup} + 1) * steps_per_epoch:  # of each part, after the warm-up
        nn.utils.clip_grad_norm_(encoder.parameters(), {clip})
        nn.utils.clip_grad_norm_(predictor.parameters(), {clip})
"""
        if clip is not None
        else ""
    )
    code = f"""\
import torch
from torch import nn
from torch.utils.data import DataLoader

from jepakit import EMATeacher, IndexedDataset, MaskCollator, MaskedPredictor, MultiBlockMask
from jepakit import cosine, linear, {loss.split()[-1]}, normalize_targets, take_tokens
from jepakit import warmup_cosine
from jepakit.data import ResumableBatches, load_clips
from jepakit.masking import MultiContextMask, UnionMask
from jepakit.nn import TokenViT, Tubelets
from jepakit.optim import param_groups

rank, world_size = 0, 1  # nodes * tasks_per_node processes there
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Data: whole frames of a folder of videos. Crops and flips are yours.
dataset, _ = load_clips(
    "path/to/videos", num_frames={frames}, frame_step={frame_step}, image_size={crop}
)
mean = torch.tensor((0.485, 0.456, 0.406), device=device).view(-1, 1, 1, 1)
std = torch.tensor((0.229, 0.224, 0.225), device=device).view(-1, 1, 1, 1)
batch_size = {batch_size}
steps_per_epoch = {per_epoch}

# Models
torch.manual_seed({seed})
grid_size = ({frames // tubelet}, {crop // patch}, {crop // patch})
encoder = TokenViT(
    grid_size,
    {width},
    depth={depth},
    num_heads={heads},
    mlp_ratio={mlp_ratio},
    embed=Tubelets(({tubelet}, {patch}, {patch}), {width}),
    position="sincos",
    uniform_power={uniform},
).to(device)
predictor = MaskedPredictor(
    grid_size,
    {width},
    predictor_embed_dim={predictor_width},
    depth={predictor_depth},
    num_heads={heads},
    uniform_power={uniform},
    joint=True,
    num_mask_tokens={len(sets)},
).to(device)
{zero_line}student = nn.ModuleDict({{"encoder": encoder, "predictor": predictor}})

# Masks: one set for each entry of the file
sampler = MultiContextMask(
    (
{"".join(sets)}    )
)

# Schedules, teacher and optimiser
{schedules}
optimizer = torch.optim.AdamW(
    param_groups(student, weight_decay=weight_decay(1)), betas={betas}, eps={eps}
)

# Loop
order = ResumableBatches(
    len(dataset), batch_size, steps=steps, seed={seed}, rank=rank, world_size=world_size
)
loader = DataLoader(
    IndexedDataset(dataset),
    batch_sampler=order,
    num_workers={workers},
    pin_memory={pin_memory},
    collate_fn=MaskCollator(sampler, seed={seed}),
)
for step, ((clips, *_), sets) in enumerate(loader):
    clips = (clips.to(device).float() / 255 - mean) / std
    sets = [masks.to(device) for masks in sets]
{_GROUPS}
    with torch.autocast(device.type, torch.bfloat16, enabled={half in ("bfloat16", "float16")}):
        features = normalize_targets(teacher(clips))
        losses = []
        for number, masks in enumerate(sets):
            context = encoder(clips, masks.context)
            pred = predictor(context, masks.context, masks.targets, mask_token=number)
            target = take_tokens(features, masks.targets)
            losses.append({loss}(pred, target, masks.targets.valid))
        loss = torch.stack(losses).mean()
    loss.backward()
{clip_lines}    optimizer.step()
    optimizer.zero_grad()
    teacher.update(encoder)
"""
    differences = (
        *_DIFFERENCES,
        "Frames are resized whole; the published code crops at random and mirrors half of all "
        "clips.",
        "Targets are padded to the longest of a batch; there they are cut to the shortest.",
    )
    return reader.migrated(code, differences)


def _mask_sets(reader: _Reader, num_frames: int) -> list[str]:
    """Source code of a sampler for each entry of `mask`."""
    numbers = sorted({int(name.split(".")[1]) for name in reader.values if name[:5] == "mask."})
    if not numbers:
        raise ValueError("config: must have at least one entry in mask")
    sets = []
    for number in numbers:
        name = f"mask.{number}"
        blocks = reader.carry(f"{name}.num_blocks", "num_targets", 1)
        scale = tuple(reader.carry(f"{name}.spatial_scale", "target_scale", (0.2, 0.8)))
        ratio = tuple(reader.carry(f"{name}.aspect_ratio", "target_aspect_ratio", (0.3, 3.0)))
        time = tuple(reader.carry(f"{name}.temporal_scale", "temporal_scale", (1.0, 1.0)))
        kept = reader.carry(f"{name}.max_temporal_keep", "context_frames_ratio", 1.0)
        if reader.carry(f"{name}.max_keep", "no limit", None) is not None:
            note = "a context has no upper limit; give context_length an int up to the minimum"
            reader.without(note, f"{name}.max_keep")
        # One token is what the published code draws again for.
        over_time = f"temporal_scale={time},\ncontext_frames_ratio={kept},\n"
        arguments = dedent(
            f"""\
            num_targets={blocks},
            target_scale={scale},
            target_aspect_ratio={ratio},
            context_scale=(1.0, 1.0),
            min_context_coverage=0.01,
            context_length="trim",
            """
        ) + (over_time if num_frames > 1 else "")
        body = "".join(f"{' ' * 16}{line}\n" for line in arguments.splitlines())
        start = f"{' ' * 8}UnionMask(\n{' ' * 12}MultiBlockMask(\n{' ' * 16}grid_size,\n"
        sets.append(f"{start}{body}{' ' * 12})\n{' ' * 8}),\n")
    return sets


def _other_vjepa_keys(reader: _Reader) -> None:
    launcher = "torchrun: --nnodes and --nproc-per-node"
    reader.elsewhere("the file is V-JEPA's", "app")
    reader.elsewhere(launcher, "nodes", "tasks_per_node")
    note = "load_clips takes a folder of videos; for a list of files write a Dataset"
    lists = ("dataset_type", "datasets", "datasets_weights", "clip_duration", "filter_short_videos")
    reader.elsewhere(note, *(f"data.{name}" for name in lists))
    note = "load_clips decodes one clip of a video; for several write a Dataset"
    reader.elsewhere(note, "data.num_clips", "data.decode_one_clip")
    if reader.values.get("data.mask_type", "multiblock3d") == "multiblock3d":
        reader.carry("data.mask_type", "MultiBlockMask", None)
    else:
        reader.without("tubes: jepakit.masking.TubeMask in place of the sampler", "data.mask_type")
    note = "crop and mirror in your Dataset, all frames of a clip alike"
    crops = ("random_resize_aspect_ratio", "random_resize_scale")
    reader.elsewhere(note, *(f"data_aug.{name}" for name in crops))
    note = "off in the published files; put it into your Dataset"
    unused = ("auto_augment", "motion_shift", "reprob")
    reader.elsewhere(note, *(f"data_aug.{name}" for name in unused))
    reader.elsewhere("your logger, and jepakit.checkpoints", "logging.folder", "logging.write_tag")
    reader.elsewhere("your logger", "data.log_resource_utilization")
    files = ("load_checkpoint", "read_checkpoint", "save_every_freq")
    reader.elsewhere("load_vjepa and jepakit.checkpoints", *(f"meta.{name}" for name in files))
    reader.elsewhere("first_step of ResumableBatches", "meta.skip_batches")
    reader.without("the published pretraining does not read it", "meta.eval_freq")
    reader.without("attention always uses the fused kernels of torch", "meta.use_sdpa")
