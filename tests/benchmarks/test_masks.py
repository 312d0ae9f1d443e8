"""`benchmarks/masks.py` runs to its end, and compares like with like."""

import json

import pytest
import torch


@pytest.mark.no_hook
def test_it_runs_at_a_tiny_scale(run_script, tmp_path) -> None:
    written = tmp_path / "masks.json"
    threads = torch.get_num_threads()
    run_script("masks", "--batch", 2, "--rounds", 1, "--write", written)
    torch.set_num_threads(threads)
    rows = json.loads(written.read_text())["rows"]
    samplers = [row for row in rows if row["kind"] == "sampler"]
    assert all(row["rate"] > 0 < row["ms_of_one"] for row in samplers)
    published = [row for row in samplers if row["name"] == "published collator"]
    assert len(published) == 3  # images, and two sets of clips
    assert len([row for row in rows if row["kind"] == "mode"]) == 16
    text = written.with_suffix(".md").read_text()
    assert text.count("| published collator |") == 3 and "| sample | pad | no |" in text


def test_clips_of_both_sides_hide_about_as_much(script) -> None:
    """Trap: a loop that is fast because its blocks are few or small."""
    torch.manual_seed(0)
    module = script("masks")
    for count, scale in module.CLIP_SETS.values():
        calls = module.clips(count, scale, batch=8)
        _, hidden = calls["published collator"]()
        ours = calls["MultiBlockMask, pad, sizes per batch"]()
        covered = ours.targets.to_mask().any(dim=1).sum(dim=1)
        # The published side is cut to the batch's shortest, so it hides no more.
        assert 0.6 < hidden.shape[1] / covered.float().mean() < 1.1
