"""Configuration files of I-JEPA and V-JEPA: every key is accounted for, the printed code runs."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image

import jepakit
from jepakit.interop import ijepa_checkpoint, migrate_config, vjepa_checkpoint
from jepakit.interop.__main__ import main

# The values of configs/in1k_vith14_ep300.yaml in facebookresearch/ijepa.
IJEPA: dict[str, Any] = {
    "data": {
        "batch_size": 128,
        "color_jitter_strength": 0.0,
        "crop_scale": [0.3, 1.0],
        "crop_size": 224,
        "image_folder": "imagenet_full_size/061417/",
        "num_workers": 10,
        "pin_mem": True,
        "root_path": "/data",
        "use_color_distortion": False,
        "use_gaussian_blur": False,
        "use_horizontal_flip": False,
    },
    "logging": {"folder": "/logs", "write_tag": "jepa"},
    "mask": {
        "allow_overlap": False,
        "aspect_ratio": [0.75, 1.5],
        "enc_mask_scale": [0.85, 1.0],
        "min_keep": 10,
        "num_enc_masks": 1,
        "num_pred_masks": 4,
        "patch_size": 14,
        "pred_mask_scale": [0.15, 0.2],
    },
    "meta": {
        "copy_data": False,
        "load_checkpoint": False,
        "model_name": "vit_huge",
        "pred_depth": 12,
        "pred_emb_dim": 384,
        "read_checkpoint": None,
        "use_bfloat16": True,
    },
    "optimization": {
        "ema": [0.996, 1.0],
        "epochs": 300,
        "final_lr": 1e-6,
        "final_weight_decay": 0.4,
        "ipe_scale": 1.0,
        "lr": 0.001,
        "start_lr": 0.0002,
        "warmup": 40,
        "weight_decay": 0.04,
    },
}


def mask_set(num_blocks: int, scale: float) -> dict[str, Any]:
    return {
        "aspect_ratio": [0.75, 1.5],
        "num_blocks": num_blocks,
        "spatial_scale": [scale, scale],
        "temporal_scale": [1.0, 1.0],
        "max_temporal_keep": 1.0,
        "max_keep": None,
    }


# The values of configs/pretrain/vitl16.yaml in facebookresearch/jepa.
VJEPA: dict[str, Any] = {
    "app": "vjepa",
    "nodes": 16,
    "tasks_per_node": 8,
    "data": {
        "dataset_type": "VideoDataset",
        "datasets": ["/k710.csv", "/ssv2.csv"],
        "decode_one_clip": True,
        "batch_size": 24,
        "num_clips": 1,
        "num_frames": 16,
        "tubelet_size": 2,
        "sampling_rate": 4,
        "crop_size": 224,
        "patch_size": 16,
        "pin_mem": True,
        "num_workers": 12,
        "filter_short_videos": False,
        "clip_duration": None,
    },
    "data_aug": {
        "auto_augment": False,
        "motion_shift": False,
        "random_resize_aspect_ratio": [0.75, 1.35],
        "random_resize_scale": [0.3, 1.0],
        "reprob": 0.0,
    },
    "logging": {"folder": "/logs", "write_tag": "jepa"},
    "loss": {"loss_exp": 1.0, "reg_coeff": 0.0},
    "mask": [mask_set(8, 0.15), mask_set(2, 0.7)],
    "meta": {
        "load_checkpoint": False,
        "read_checkpoint": None,
        "seed": 234,
        "eval_freq": 100,
        "use_sdpa": True,
        "dtype": "bfloat16",
    },
    "model": {
        "model_name": "vit_large",
        "pred_depth": 12,
        "pred_embed_dim": 384,
        "uniform_power": True,
        "use_mask_tokens": True,
        "zero_init_mask_tokens": True,
    },
    "optimization": {
        "ipe": 300,
        "ipe_scale": 1.25,
        "clip_grad": 10.0,
        "weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "epochs": 300,
        "warmup": 40,
        "start_lr": 0.0002,
        "lr": 0.000625,
        "final_lr": 1e-6,
        "ema": [0.998, 1.0],
    },
}


def changed(config: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for section, values in sections.items():
        config[section] |= values
    return config


@pytest.mark.parametrize("config", [IJEPA, VJEPA], ids=["ijepa", "vjepa"])
def test_every_published_key_is_accounted_for(config: dict[str, Any]) -> None:
    migrated = migrate_config(config)
    compile(migrated.code, "migrated", "exec")
    assert [key.name for key in migrated.keys if key.outcome == "unknown"] == []
    text = str(migrated)
    assert all(f"# {key.name} = " in text for key in migrated.keys)


@pytest.mark.parametrize("config", [IJEPA, VJEPA], ids=["ijepa", "vjepa"])
def test_unknown_keys_are_named(config: dict[str, Any]) -> None:
    """Trap: a key with a typing error that is read nowhere."""
    typo = changed(config, optimization={"weight_decai": 0.1}, data={})
    typo["extra"] = {}
    unknown = [key.name for key in migrate_config(typo).keys if key.outcome == "unknown"]
    assert unknown == ["optimization.weight_decai", "extra"]


def leaf(section: str, key: str, value: Any) -> Any:
    return pytest.param(section, key, value, id=f"{section}.{key}")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        leaf("data", "batch_size", 64),
        leaf("data", "crop_scale", [0.5, 1.0]),
        leaf("data", "crop_size", 448),
        leaf("data", "image_folder", "other"),
        leaf("data", "num_workers", 3),
        leaf("data", "pin_mem", False),
        leaf("data", "use_color_distortion", True),
        leaf("data", "use_gaussian_blur", True),
        leaf("data", "use_horizontal_flip", True),
        leaf("mask", "aspect_ratio", [1.0, 1.0]),
        leaf("mask", "enc_mask_scale", [0.9, 1.0]),
        leaf("mask", "min_keep", 20),
        leaf("mask", "num_pred_masks", 2),
        leaf("mask", "patch_size", 16),
        leaf("mask", "pred_mask_scale", [0.1, 0.2]),
        leaf("meta", "model_name", "vit_giant"),
        leaf("meta", "pred_depth", 6),
        leaf("meta", "pred_emb_dim", 192),
        leaf("meta", "use_bfloat16", False),
        *(leaf("optimization", key, 7) for key in ("epochs", "ipe_scale", "lr", "warmup")),
        *(leaf("optimization", key, 7) for key in ("start_lr", "final_lr", "weight_decay")),
        leaf("optimization", "final_weight_decay", 7),
        leaf("optimization", "ema", [0.9, 0.99]),
    ],
)
def test_what_is_carried_over_changes_the_code(section: str, key: str, value: Any) -> None:
    """Trap: a key that is said to be carried over, and is not."""
    migrated = migrate_config(changed(IJEPA, **{section: {key: value}}))
    assert migrated.code != migrate_config(IJEPA).code
    assert next(k for k in migrated.keys if k.name == f"{section}.{key}").outcome == "carried over"


def test_values_without_counterpart_say_so() -> None:
    config = changed(IJEPA, mask={"num_enc_masks": 2, "allow_overlap": True})
    lost = {key.name for key in migrate_config(config).keys if key.outcome == "no counterpart"}
    assert {"mask.num_enc_masks", "mask.allow_overlap"} <= lost
    config = changed(VJEPA, loss={"reg_coeff": 0.1}, model={"use_mask_tokens": False})
    lost = {key.name for key in migrate_config(config).keys if key.outcome == "no counterpart"}
    assert {"loss.reg_coeff", "model.use_mask_tokens"} <= lost


def test_errors_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"meta\.model_name='vit_odd'"):
        migrate_config(changed(IJEPA, meta={"model_name": "vit_odd"}))
    with pytest.raises(ValueError, match=r"loss\.loss_exp=3"):
        migrate_config(changed(VJEPA, loss={"loss_exp": 3}))
    incomplete = copy.deepcopy(IJEPA)
    del incomplete["optimization"]["lr"]
    with pytest.raises(ValueError, match=r"must have the key optimization\.lr"):
        migrate_config(incomplete)


def test_code_for_ijepa_trains(tmp_path: Path) -> None:
    """The published values, of a smaller model on smaller images, for two passes of two steps."""
    (tmp_path / "train" / "class").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 255, (120, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / "class" / f"{number}.png")
    config = changed(
        IJEPA,
        data={
            "root_path": str(tmp_path),
            "image_folder": "",
            "crop_size": 112,
            "batch_size": 2,
            "num_workers": 0,
            "pin_mem": False,
            "use_color_distortion": True,
            "use_gaussian_blur": True,
        },
        meta={"model_name": "vit_tiny", "pred_depth": 1, "pred_emb_dim": 48},
        optimization={"epochs": 2, "warmup": 1},
    )
    names: dict[str, Any] = {}
    exec(migrate_config(config).code, names)
    teacher, encoder, predictor = (names[name] for name in ("teacher", "encoder", "predictor"))
    assert teacher.step == 4
    assert torch.isfinite(names["loss"])
    # The warm-up is one pass, in steps, and the last step has the last value.
    assert [names["lr"](step) for step in (0, 2, 4)] == [0.0002, 0.001, 1e-6]
    assert names["weight_decay"](4) == 0.4
    groups = names["optimizer"].param_groups
    assert [group["lr"] for group in groups] == [1e-6] * len(groups)
    assert sorted({group["weight_decay"] for group in groups}) == [0.0, 0.4]
    assert teacher.momentum == 1.0
    assert names["sampler"].min_context_coverage == 10 / 64
    assert not encoder.backbone.pos_embed.requires_grad
    # The parts are those of the published layout.
    assert ijepa_checkpoint(encoder, predictor, teacher, epoch=2)["epoch"] == 2


def test_code_for_vjepa_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = torch.randint(0, 255, (4, 3, 4, 64, 64), dtype=torch.uint8)
    dataset = torch.utils.data.TensorDataset(clips, torch.zeros(4))
    monkeypatch.setattr(jepakit.data, "load_clips", lambda *_, **__: (dataset, dataset))
    config = changed(
        VJEPA,
        data={
            "num_frames": 4,
            "crop_size": 64,
            "patch_size": 8,
            "batch_size": 2,
            "num_workers": 0,
            "pin_mem": False,
        },
        model={"model_name": "vit_tiny", "pred_depth": 1, "pred_embed_dim": 48},
        optimization={"epochs": 2, "warmup": 0, "ipe": 2, "clip_grad": 1e-6},
    )
    names: dict[str, Any] = {}
    exec(migrate_config(config).code, names)
    teacher, encoder, predictor = (names[name] for name in ("teacher", "encoder", "predictor"))
    assert teacher.step == 4
    assert torch.isfinite(names["loss"])
    assert predictor.num_mask_tokens == 2
    blocks = [each.sampler for each in names["sampler"].samplers]
    assert [each.num_targets for each in blocks] == [8, 2]
    assert [each.target_scale for each in blocks] == [(0.15, 0.15), (0.7, 0.7)]
    assert {each.target_aspect_ratio for each in blocks} == {(0.75, 1.5)}
    assert names["schedule_steps"] == 5
    assert vjepa_checkpoint(encoder, predictor, teacher, epoch=2)["epoch"] == 2


@pytest.mark.parametrize(("exponent", "loss"), [(1.0, "masked_l1"), (2.0, "0.5 * masked_mse")])
def test_the_loss_is_that_of_its_exponent(exponent: float, loss: str) -> None:
    """The published loss is |z - h|^p / p, averaged."""
    code = migrate_config(changed(VJEPA, loss={"loss_exp": exponent})).code
    assert f"losses.append({loss}(pred, target, masks.targets.valid))" in code


@pytest.mark.parametrize(
    ("model", "patch"),
    [("tiny", 16), ("small", 16), ("base", 16), ("large", 16), ("huge", 14), ("giant", 14)],
)
def test_models_have_the_size_of_their_name(model: str, patch: int) -> None:
    with torch.device("meta"):
        timms = timm.create_model(f"vit_{model}_patch{patch}_224", num_classes=0)
    block = timms.blocks[0]
    code = migrate_config(changed(IJEPA, meta={"model_name": f"vit_{model}"})).code
    backbone = code[code.index("backbone = ") : code.index("encoder = ")]
    found = dict(re.findall(r"(\w+)=([\d./ ]+),", backbone))
    assert int(found["embed_dim"]) == timms.embed_dim
    assert int(found["depth"]) == len(timms.blocks)
    assert int(found["num_heads"]) == block.attn.num_heads
    assert int(eval(found["mlp_ratio"]) * timms.embed_dim) == block.mlp.fc1.out_features


def test_a_command_prints_the_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(VJEPA, sort_keys=False))
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == str(migrate_config(VJEPA))
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.slow
def test_the_package_is_a_command() -> None:
    """Trap: `python -m` on a module that its package has imported warns."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "jepakit.interop"]
    usage = subprocess.run(command, capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert usage.stderr.startswith("usage: python -m jepakit.interop")


@pytest.mark.parametrize("config", [IJEPA, VJEPA], ids=["I-JEPA", "V-JEPA"])
def test_omegaconf_holds_the_same_file(config: dict[str, Any]) -> None:
    """Trap: a list of another type is no list, so that its entries are unknown."""
    plain, wrapped = migrate_config(config), migrate_config(OmegaConf.create(config))
    assert wrapped.code == plain.code
    assert [key.outcome for key in wrapped.keys] == [key.outcome for key in plain.keys]


def test_a_file_without_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one entry in mask"):
        migrate_config(VJEPA | {"mask": []})
