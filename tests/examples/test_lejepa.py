"""examples/lejepa.py does what its docstring says, and only agreement alone collapses."""

import argparse
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch

from jepakit.data import textured_shapes
from jepakit.diagnostics import CollapseError, CollapseWarning

EXAMPLE = Path(__file__).parents[2] / "examples/lejepa.py"
# Views that differ little, so that every regulariser prevents collapse within a few steps.
SMALL = [
    "--steps", "80", "--batch-size", "32", "--eval-images", "150", "--width", "32", "--depth", "2",
    "--hidden", "64", "--projection", "16", "--global-views", "2", "--local-views", "0",
    "--global-scale", "0.8", "1", "--contrast", "0.1", "--brightness", "0.1", "--noise", "0.1",
    "--lr", "4e-3", "--device", "cpu",
]  # fmt: skip
REGULARISED = ("lejepa", "vicreg", "barlow", "info_nce", "koleo")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A few of the default images, since all of them take a third of a short run."""
    arrays = {}
    for part, images in zip(("train", "test"), textured_shapes(600, 150), strict=True):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = (x.numpy() for x in images.tensors)
        arrays[f"x_{part}"] = arrays[f"x_{part}"].transpose(0, 2, 3, 1)
    path = tmp_path_factory.mktemp("textures") / "textures.npz"
    np.savez(path, **arrays)
    return str(path)


def run(out: Path, *options: str) -> None:
    """Run in this process, which saves the time of imports."""
    argv, threads = sys.argv, torch.get_num_threads()
    sys.argv = [str(EXAMPLE), "--out", str(out), *SMALL, *options]
    torch.set_num_threads(1)  # so that sums have one order
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        sys.argv = argv
        torch.set_num_threads(threads)
        plt.close("all")  # matplotlib keeps figures, and warns of too many


def result(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def kept(out: Path) -> float:
    """Final std of the projections as a fraction of that after ten steps."""
    std = [value for _, value in result(out)["curves"]["std"]]
    return std[-1] / std[0]


@pytest.fixture(scope="module")
def finished(textures: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """As a user runs it: a process of its own, without the type-checking hook."""
    out = tmp_path_factory.mktemp("lejepa")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--data", textures, "--out", str(out), *SMALL],
        env={**os.environ, "JEPAKIT_TYPECHECK": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_prints_the_table_and_saves_pictures(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for row in ("raw pixels", "untrained encoder", "trained encoder", "linear probe", "kNN-20"):
        assert row in printed
    for picture in ("curves.png", "pca.png"):
        assert (out / picture).stat().st_size > 5_000


def test_the_result_can_be_traced(finished: tuple[Path, str]) -> None:
    """Trap: a table whose settings are unknown."""
    saved = result(finished[0])
    assert saved["settings"]["seed"] == 0 and saved["settings"]["objective"] == "lejepa"
    assert saved["versions"]["torch"] == torch.__version__
    assert saved["steps"] == 80 and saved["images"] == 80 * 32
    assert set(saved["rows"]) == {"raw pixels", "untrained encoder", "trained encoder"}
    assert all(0 <= row[0] <= 1 and 0 <= row[1] <= 1 for row in saved["rows"].values())


def test_the_same_seed_gives_the_same_figures(
    finished: tuple[Path, str], textures: str, tmp_path: Path
) -> None:
    run(tmp_path, "--data", textures)
    again, first = result(tmp_path), result(finished[0])
    assert again["curves"] == first["curves"] and again["rows"] == first["rows"]


def test_the_encoder_is_a_plain_timm_checkpoint(finished: tuple[Path, str]) -> None:
    """The call that the example prints loads it, and no name is lost on the way."""
    out, printed = finished
    call = next(line for line in printed.splitlines() if line.startswith("timm.create_model"))
    model = eval(call, {"timm": timm})
    saved = torch.load(out / "encoder.pth", weights_only=True)
    loaded = model.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_agreement_alone_collapses_and_is_caught(textures: str, tmp_path: Path) -> None:
    """The deliberately broken run: no teacher and nothing that keeps features apart."""
    with pytest.warns(CollapseWarning, match="Possible remedies"):
        run(tmp_path, "--data", textures, "--objective", "none")
    broken = result(tmp_path)
    assert kept(tmp_path) < 0.3  # 0.08 to 0.22 over seeds; whatever is regularised keeps all of it
    assert broken["curves"]["loss"][-1][1] < 1e-3, "and the loss looks perfect"
    assert broken["collapses"][0]["step"] < 80
    assert {found["kind"] for found in broken["collapses"]} <= {"full", "slow"}


def test_a_collapse_can_end_the_run(textures: str, tmp_path: Path) -> None:
    with pytest.raises(CollapseError):
        run(tmp_path, "--data", textures, "--objective", "none", "--on-collapse", "raise")
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("objective", REGULARISED)
def test_every_regulariser_prevents_it(
    objective: str, finished: tuple[Path, str], textures: str, tmp_path: Path
) -> None:
    out = finished[0]
    if objective != "lejepa":
        out = tmp_path
        run(out, "--data", textures, "--objective", objective)
    assert kept(out) > 0.5
    assert result(out)["collapses"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--objective vicreg --weight 7",
            "--weight: has no effect with vicreg, only with lejepa and koleo",
        ),
        ("--temperature 9", "--temperature: has no effect with lejepa, only with info_nce"),
        ("--objective koleo --weight -1", "--weight -1.0: must not be negative"),
        ("--grey 1.5", "--grey 1.5: must be from 0 to 1"),
        ("--global-views 1", "must be at least two views, one of them global"),
        ("--steps 0", "--steps 0: must be at least 1"),
    ],
)
def test_options_without_effect(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trap: options that are accepted and ignored."""
    with pytest.raises(SystemExit):
        run(tmp_path / "out", *options.split())
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_colours_change_each_channel_on_its_own_and_grey_takes_them() -> None:
    jitter = runpy.run_path(str(EXAMPLE))["jitter"]
    none = argparse.Namespace(contrast=0.0, brightness=0.0, noise=0.0, colour=0.0, grey=0.0)
    images = torch.randn(200, 3, 4, 4)
    assert torch.equal(jitter(images, none), images)
    tint = jitter(images, argparse.Namespace(**vars(none) | {"colour": 0.5})) - images
    assert torch.allclose(tint, tint[:, :, :1, :1].expand_as(tint), atol=1e-6)
    assert 0.4 < float(tint.abs().max()) <= 0.5 + 1e-6
    assert float(tint[:, :, 0, 0].std(dim=1).min()) > 0  # not one shift for all channels
    greyed = jitter(images, argparse.Namespace(**vars(none) | {"grey": 0.3}))
    kept = (greyed == images).flatten(1).all(dim=1)
    assert 0.5 < float(kept.float().mean()) < 0.9
    mean = images[~kept].mean(dim=1, keepdim=True).expand_as(images[~kept])
    assert torch.allclose(greyed[~kept], mean)


def test_pictures_without_colours_have_none_to_change(textures: str, tmp_path: Path) -> None:
    """Trap: options that are accepted and ignored."""
    arrays = {name: array[..., 0] for name, array in np.load(textures).items() if name[0] == "x"}
    arrays |= {name: array for name, array in np.load(textures).items() if name[0] == "y"}
    np.savez(tmp_path / "grey.npz", **arrays)
    for option in ("--colour", "--grey"):
        with pytest.raises(SystemExit, match="have a single channel"):
            run(tmp_path, "--data", str(tmp_path / "grey.npz"), option, "0.2")


def test_runs_on_colour_pictures_with_local_views(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.integers(0, 256, (60, 28, 36, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(60) % 3
    np.savez(tmp_path / "images.npz", **arrays)
    few = ("--data", str(tmp_path / "images.npz"), "--steps", "2", "--flip", "--amp")
    few += ("--patch-size", "4")
    run(tmp_path / "a", *few)
    run(tmp_path / "b", *few, "--local-views", "3", "--global-views", "1")
    assert all(result(tmp_path / name)["steps"] == 2 for name in "ab")
