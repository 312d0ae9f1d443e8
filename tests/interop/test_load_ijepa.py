"""A published checkpoint computes here what it computes there, and pretraining goes on from it."""

import copy

import numpy as np
import pytest
import torch
from tests.interop import published
from tests.interop.conftest import same, snapshot
from torch.nn.parallel import DistributedDataParallel

from jepakit import masked_smooth_l1, normalize_targets, take_tokens
from jepakit.interop import ijepa_checkpoint, load_ijepa


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest value."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * scale)


def listed(tokens) -> list[list[int]]:
    return [idx[valid].tolist() for idx, valid in zip(tokens.idx, tokens.valid, strict=True)]


@torch.no_grad()
def test_encoder_and_teacher_are_the_published_ones(parts, images) -> None:
    checkpoint = published.checkpoint()
    load_ijepa(checkpoint, **parts)
    for part, key in (("encoder", "encoder"), ("teacher", "target_encoder")):
        state = published.plain(checkpoint[key])
        close(parts[part](images), torch.stack([published.encode(state, x) for x in images]))
    assert not torch.allclose(parts["encoder"](images), parts["teacher"](images), atol=0.1)


@torch.no_grad()
def test_context_is_encoded_as_published(parts, images, ragged) -> None:
    checkpoint = published.checkpoint()
    load_ijepa(checkpoint, encoder=parts["encoder"])
    state, seen = published.plain(checkpoint["encoder"]), listed(ragged.context)
    tokens = parts["encoder"](images, ragged.context)
    for sample, visible in enumerate(seen):
        close(tokens[sample, : len(visible)], published.encode(state, images[sample], visible))


@torch.no_grad()
def test_predictor_is_the_published_one(parts, ragged) -> None:
    """Trap: the published table has the column first; loaded as it is, rows and columns swap."""
    checkpoint = published.checkpoint()
    load_ijepa(checkpoint, predictor=parts["predictor"])
    state = published.plain(checkpoint["predictor"])
    context = torch.randn(*ragged.context.shape, published.PREDICTOR["encoder_dim"])
    pred = parts["predictor"](context, ragged.context, ragged.targets)
    for sample, visible in enumerate(listed(ragged.context)):
        for block, target in enumerate(listed(ragged.targets[sample])):
            expected = published.predict(state, context[sample, : len(visible)], visible, target)
            close(pred[sample, block, : len(target)], expected)


def test_expected_values_know_rows_from_columns() -> None:
    """The test above can fail: with the halves of the table swapped, the values differ."""
    state = published.plain(published.checkpoint()["predictor"])
    context = torch.randn(2, published.PREDICTOR["encoder_dim"])
    right = published.predict(state, context, [1, 6], [3])
    half = published.PREDICTOR["dim"] // 2
    state["predictor_pos_embed"] = state["predictor_pos_embed"].roll(half, dims=-1)
    assert (published.predict(state, context, [1, 6], [3]) - right).abs().max() > 0.1


@torch.no_grad()
def test_another_table_is_taken_by_a_learned_one(parts, build_predictor, ragged) -> None:
    checkpoint = published.checkpoint()
    name = "module.predictor_pos_embed"
    checkpoint["predictor"][name] = torch.randn_like(checkpoint["predictor"][name])
    with pytest.raises(ValueError, match=r"predictor_pos_embed differs .* position='learned'"):
        load_ijepa(checkpoint, predictor=parts["predictor"])
    predictor = build_predictor(position="learned")
    load_ijepa(checkpoint, predictor=predictor)
    context = torch.randn(*ragged.context.shape, published.PREDICTOR["encoder_dim"])
    visible, target = listed(ragged.context)[0], listed(ragged.targets[0])[0]
    state = published.plain(checkpoint["predictor"])
    expected = published.predict(state, context[0, : len(visible)], visible, target)
    close(predictor(context, ragged.context, ragged.targets)[0, 0, : len(target)], expected)
    saved = ijepa_checkpoint(parts["encoder"], predictor, parts["teacher"], epoch=0)["predictor"]
    assert same(saved, checkpoint["predictor"])


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("kind", ["dict", "str", "Path", "older format"])
def test_mapping_or_file_with_or_without_prefix(parts, tmp_path, kind, prefixed) -> None:
    checkpoint = published.checkpoint()
    load_ijepa(checkpoint, **parts)
    expected = snapshot(parts)
    load_ijepa(published.checkpoint(seed=1), **parts)
    assert not same(snapshot(parts), expected)
    if not prefixed:
        for key in ("encoder", "predictor", "target_encoder"):
            checkpoint[key] = published.plain(checkpoint[key])
    path = tmp_path / "jepa-latest.pth.tar"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=kind != "older format")
    load_ijepa({"dict": checkpoint, "str": str(path)}.get(kind, path), **parts)
    assert same(snapshot(parts), expected)


@pytest.mark.parametrize("only", ["encoder", "predictor", "teacher"])
def test_a_part_alone(parts, only) -> None:
    before, checkpoint = snapshot(parts), published.checkpoint()
    key = "target_encoder" if only == "teacher" else only
    load_ijepa({key: checkpoint[key]}, **{only: parts[only]})
    after = snapshot(parts)
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {only}


def test_nothing_is_shared_with_the_checkpoint(parts) -> None:
    checkpoint = published.checkpoint()
    kept = copy.deepcopy(checkpoint)
    load_ijepa(checkpoint, **parts)
    with torch.no_grad():
        for part in parts.values():
            for parameter in part.parameters():
                parameter.zero_()
    for key in ("encoder", "predictor", "target_encoder"):
        assert same(checkpoint[key], kept[key])


def test_half_precision_checkpoint(parts) -> None:
    checkpoint = published.checkpoint()
    for key in ("encoder", "predictor", "target_encoder"):
        checkpoint[key] = {name: tensor.bfloat16() for name, tensor in checkpoint[key].items()}
    load_ijepa(checkpoint, **parts)
    saved = ijepa_checkpoint(**parts, epoch=0)["predictor"]
    for name, tensor in checkpoint["predictor"].items():
        tolerance = 0.01 if "pos_embed" in name else 0
        torch.testing.assert_close(saved[name], tensor.float(), rtol=0, atol=tolerance)


def test_the_momentum_schedule_goes_on(parts) -> None:
    """Trap: a momentum schedule that starts again after a resume."""
    teacher = parts["teacher"]
    load_ijepa(published.checkpoint(), teacher=teacher)
    assert teacher.step == 0
    load_ijepa(published.checkpoint(), teacher=teacher, steps_per_epoch=100)
    assert (teacher.step, teacher.momentum) == (700, 0.85)
    load_ijepa(published.checkpoint(), teacher=teacher, steps_per_epoch=np.int64(10))
    assert type(teacher.step) is int and teacher.step == 70


def test_pretraining_goes_on(parts, images, ragged) -> None:
    encoder, predictor, teacher = parts.values()
    load_ijepa(published.checkpoint(), **parts, steps_per_epoch=10)
    before = snapshot(parts)
    optimizer = torch.optim.SGD([*encoder.parameters(), *predictor.parameters()], lr=0.01)
    target = take_tokens(normalize_targets(teacher(images)), ragged.targets)
    pred = predictor(encoder(images, ragged.context), ragged.context, ragged.targets)
    masked_smooth_l1(pred, target, ragged.targets.valid).backward()
    optimizer.step()
    teacher.update(encoder)
    after = snapshot(parts)
    fixed = {name for name in after if torch.equal(after[name], before[name])}
    assert fixed == {"predictor.position_table"}
    assert teacher.step == 71


def compiled(module):
    return torch.compile(module, backend="eager")


@pytest.mark.parametrize("wrap", ["ddp", "compiled", "compiled ddp", "submodules"])
def test_wrapped_parts(parts, process_group, wrap) -> None:
    """Trap: on a wrapper every name starts with `module.` or `_orig_mod.`, and nothing matches."""
    checkpoint = published.checkpoint()
    load_ijepa(checkpoint, **parts)
    expected = snapshot(parts)
    load_ijepa(published.checkpoint(seed=1), **parts)
    wrapped = dict(parts)
    if wrap == "submodules":
        parts["encoder"].backbone = compiled(parts["encoder"].backbone)
        for module in (parts["predictor"], parts["teacher"].module.backbone):
            module.blocks[1] = compiled(module.blocks[1])
    if "ddp" in wrap:
        for name in ("encoder", "predictor"):
            wrapped[name] = DistributedDataParallel(wrapped[name])
    if wrap.startswith("compiled"):
        wrapped = {name: compiled(part) for name, part in wrapped.items()}
    load_ijepa(checkpoint, **wrapped)
    now = {name.replace("_orig_mod.", ""): tensor for name, tensor in snapshot(parts).items()}
    assert same(now, expected)
    saved = ijepa_checkpoint(**wrapped, epoch=0)
    assert same(saved["encoder"], checkpoint["encoder"])
