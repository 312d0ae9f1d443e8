"""Law 15 for `MaskedViT`: the backbone stays as it was, whoever shares it, whatever is raised."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from types import MethodType
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from jepakit import MaskedViT, TokenSet


def random_context(encoder: MaskedViT, length: int, *, ragged: bool) -> TokenSet:
    """Two sets of `length` positions, the first one shorter if ragged."""
    size = encoder.grid_size[0] * encoder.grid_size[1]
    mask = torch.rand(2, size).argsort(dim=1) < length
    mask[0] &= torch.rand(size) < 0.5 if ragged else True
    return TokenSet.from_mask(mask, encoder.grid_size)


def state_of(backbone: nn.Module) -> list[Any]:
    """All that can be seen of a module and its children: types, attributes, hooks, modes."""

    def shown(value: object) -> object:
        if isinstance(value, dict):  # parameters, buffers, children, hooks
            return {key: id(entry) for key, entry in value.items()}
        return value if isinstance(value, bool | int | float | str) else id(value)

    return [
        (name, type(module), repr(module), {key: shown(v) for key, v in vars(module).items()})
        for name, module in backbone.named_modules(remove_duplicate=False)
    ]


@pytest.fixture
def often_interrupted() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_nothing_is_installed(any_kind, build, images_for) -> None:
    """Law 15. Traps: a hook, a class or a `patch_drop` of ours left in the user's model; a model in
    eval mode that is in train mode when it is wrapped; a plain call that is a masked one."""
    bare = build(any_kind, wrapped=False)
    bare.blocks[0].eval()
    before, weights = state_of(bare), bare.state_dict()
    encoder = MaskedViT(bare)
    images = images_for(encoder, 2)
    with torch.no_grad():
        expected = bare(images), bare.forward_intermediates(images, intermediates_only=True)
        context = random_context(encoder, 3, ragged=True)
        for call in (
            lambda: encoder(images, context),
            lambda: encoder.forward_intermediates(images, [0], context),
            lambda: encoder.extract_features(images, context),
        ):
            call()
            assert state_of(bare) == before
            assert torch.equal(bare(images), expected[0])
            layers = bare.forward_intermediates(images, intermediates_only=True)
            assert all(map(torch.equal, layers, expected[1]))
    assert list(bare.state_dict()) == list(weights)


@pytest.mark.parametrize("training", [False, True])
def test_modes_stay(training, build) -> None:
    """Law 15. Trap: the wrapper says `training` of a model in eval mode, and who restores the
    wrapper's mode puts the model into train mode."""
    backbone = build("vit_cls", wrapped=False).train(training)
    backbone.patch_embed.train(not training)
    modes = [module.training for module in backbone.modules()]
    for mode in ("drop", "replace"):
        encoder = MaskedViT(backbone, mask_mode=mode)
        added = {*encoder.modules()} - {*backbone.modules()}
        assert all(module.training == training for module in added)
        assert [module.training for module in backbone.modules()] == modes


@pytest.mark.parametrize("method", ["forward", "forward_intermediates", "extract_features"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_error_leaves_nothing(few_kind, build, images_for, method, checkpointing) -> None:
    """Law 15. Trap: the next plain forward is a masked one."""
    encoder = build(few_kind).train()
    encoder.backbone.set_grad_checkpointing(checkpointing)
    images, context = images_for(encoder, 2), random_context(encoder, 4, ragged=True)
    expected, whole = encoder(images, context), encoder(images)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    handle = encoder.backbone.blocks[1].register_forward_pre_hook(fail)
    before = state_of(encoder.backbone)
    arguments = (images, [1], context) if method == "forward_intermediates" else (images, context)
    with pytest.raises(KeyboardInterrupt):
        getattr(encoder, method)(*arguments)
    assert state_of(encoder.backbone) == before
    handle.remove()
    assert torch.equal(encoder(images, context), expected)
    assert torch.equal(encoder(images), whole)
    plain = encoder.backbone.forward_features(images)[:, encoder.num_prefix_tokens :]
    assert torch.equal(plain, whole)


def run_in_threads(calls: list[Callable[[], Any]], rounds: int) -> list[Any]:
    """Run each call in a thread of its own, again and again; return the results of each."""
    start = threading.Barrier(len(calls))

    def repeat(call: Callable[[], Any]) -> list[Any]:
        start.wait()
        return [call() for _ in range(rounds)]

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(repeat, call) for call in calls]]


def test_threads_with_their_own_contexts(few_kind, build, images_for, often_interrupted) -> None:
    """Law 15. Trap: one context on the module while a forward runs; threads exchange theirs, and
    features are wrong without an error. Here one thread's calls fail, two run another encoder
    around the same backbone, and one the plain backbone."""
    encoder = build(few_kind)
    other = MaskedViT(encoder.backbone)
    images = images_for(encoder, 2)
    contexts = [random_context(encoder, 2 + number, ragged=number % 2 == 0) for number in range(5)]
    alone = TokenSet.from_mask(torch.eye(2, encoder.grid_size[0] * encoder.grid_size[1]).bool(),
                               encoder.grid_size)  # fmt: skip
    failing = encoder.num_prefix_tokens + alone.shape[-1]

    def fail(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments[0].shape[1] == failing:
            raise KeyError("a thread's own error")

    encoder.backbone.blocks[1].register_forward_pre_hook(fail)

    def raising() -> str:
        try:
            encoder(images, alone)
        except KeyError as error:
            return error.args[0]
        return "no error"

    @torch.no_grad()
    def features(by: MaskedViT, context: TokenSet | None, *, last: bool) -> torch.Tensor:
        return by.forward_intermediates(images, [1], context)[0] if last else by(images, context)

    @torch.no_grad()
    def plain() -> torch.Tensor:
        return encoder.backbone.forward_features(images)

    calls: list[Callable[[], Any]] = [raising, plain]
    for number, context in enumerate(contexts):
        by, last = (encoder, other)[number % 2], number == 3
        calls.append(lambda by=by, context=context, last=last: features(by, context, last=last))
    expected = [call() for call in calls]
    before = state_of(encoder.backbone)
    for results, alone_result in zip(run_in_threads(calls, 8), expected, strict=True):
        for result in results:
            if isinstance(alone_result, str):
                assert result == alone_result == "a thread's own error"
            else:
                assert torch.equal(result, alone_result)
    assert state_of(encoder.backbone) == before


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_threads_with_hidden_patches_replaced(name, often_interrupted) -> None:
    """Law 15 of `mask_mode="replace"`, also beside an encoder that drops patches of the model."""
    torch.manual_seed(0)
    if name == "vit":
        backbone = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=0)
    else:
        backbone = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=32,
            depths=(1, 1, 2), num_heads=(1, 1, 1), num_classes=0,
        )  # fmt: skip
    before = state_of(backbone.eval())
    encoders = [MaskedViT(backbone, mask_mode="replace") for _ in range(2)]
    encoders += [MaskedViT(backbone)] if name == "vit" else []
    images = torch.randn(2, 3, 64, 64)

    @torch.no_grad()
    def features(encoder: MaskedViT, context: TokenSet) -> torch.Tensor:
        return encoder(images, context)

    calls: list[Callable[[], torch.Tensor]] = []
    for encoder in encoders * 2:
        context = random_context(encoder, 3 + len(calls), ragged=True)
        calls.append(lambda encoder=encoder, context=context: features(encoder, context))
    expected = [call() for call in calls]
    for results, result in zip(run_in_threads(calls, 8), expected, strict=True):
        assert all(torch.equal(each, result) for each in results)
    assert state_of(backbone) == before


@pytest.mark.parametrize("kind", ["beit", "relpos"])
def test_blocks_in_wrappers(kind, build, images_for, assert_close) -> None:
    """Blocks with a bias of their own within torch's checkpointing, or compiled in place. Trap: the
    wrapper calls the block's own attention, with the bias of the whole grid."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    encoder = build(kind)
    images, context = images_for(encoder, 2), random_context(encoder, 5, ragged=True)
    expected = encoder(images, context)
    blocks = encoder.backbone.blocks
    blocks[0] = checkpoint_wrapper(blocks[0])
    blocks[1].compile(backend="eager")
    out = encoder(images, context)
    assert_close(out, expected)
    out.sum().backward()
    blocks[1] = torch.compile(blocks[1], backend="eager")
    assert_close(encoder(images, context), expected)


def count_hooks(encoder: MaskedViT, call: Callable[[], Any]) -> dict[str, int]:
    """How often a hook on each submodule of the backbone runs in a call."""
    counts: dict[str, int] = {}
    handles = []
    for name, module in encoder.backbone.named_modules():

        def count(*_: object, name: str = name) -> None:
            counts[name] = counts.get(name, 0) + 1

        handles.append(module.register_forward_hook(count))
    call()
    for handle in handles:
        handle.remove()
    return counts


def test_every_hook_runs(few_kind, build, images_for) -> None:
    """Law 15. Trap: with a context, what a hook of the user's changes or records is lost. Only
    `patch_drop` is not called, nor, by timm with a mask, the list of blocks as a whole."""
    encoder = build(few_kind)
    images, context = images_for(encoder, 2), random_context(encoder, 3, ragged=True)
    plain = count_hooks(encoder, lambda: encoder(images))
    masked = count_hooks(encoder, lambda: encoder(images, context))
    for counts in (plain, masked):
        counts.pop("patch_drop", None)
        counts.pop("blocks", None)
    assert plain["patch_embed" if "patch_embed" in plain else "embeds.pos_drop"] == 1
    assert masked == plain


def test_every_hook_runs_where_patches_are_replaced() -> None:
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, num_classes=0)
    encoder = MaskedViT(backbone, mask_mode="replace").eval()
    images, context = torch.randn(2, 3, 64, 64), random_context(encoder, 3, ragged=True)
    plain = count_hooks(encoder, lambda: encoder(images))
    assert plain["patch_embed"] == 1
    assert count_hooks(encoder, lambda: encoder(images, context)) == plain


@pytest.mark.parametrize("kind", ["beit", "relpos"])
def test_hooks_are_given_the_users_modules(kind, build, images_for) -> None:
    """Law 15. Trap: what a hook stores on its module, or looks up by it, is lost."""
    encoder = build(kind).train()
    images, context = images_for(encoder, 2), random_context(encoder, 5, ragged=True)
    parts = [part for block in encoder.backbone.blocks for part in (block, block.attn)]
    seen: list[tuple[str, nn.Module]] = []
    for part in parts:
        part.register_forward_pre_hook(
            lambda module, _args, _kwargs: seen.append(("pre", module)), with_kwargs=True
        )
        part.register_forward_hook(lambda module, _args, _out: seen.append(("post", module)))
        part.register_full_backward_hook(lambda module, _in, _out: seen.append(("back", module)))
    encoder(images, context).sum().backward()
    for when in ("pre", "post", "back"):
        modules = [module for name, module in seen if name == when]
        assert len(modules) == len(parts) and {*map(id, modules)} == {*map(id, parts)}


@pytest.mark.no_hook  # it compiles
@pytest.mark.parametrize("bound", [False, True])
def test_attributes_of_the_model_hide_those_of_its_class(bound, images_for) -> None:
    """Trap: with a context, a flag or a method that the user set on the model has no effect."""

    class Shifted(VisionTransformer):
        shift: Any = 0.0

        def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
            return super()._pos_embed(x) + self.shift

    model = Shifted(img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    encoder = MaskedViT(model).eval()
    images = images_for(encoder, 2)
    every = TokenSet.full(encoder.grid_size, (2,))
    before = encoder(images)
    model.shift = torch.linspace(-1, 1, 16)
    shifted = encoder(images)
    assert not torch.allclose(shifted, before, atol=1e-2)
    torch.testing.assert_close(encoder(images, every), shifted)

    def doubled(self: Shifted, x: torch.Tensor) -> torch.Tensor:
        return VisionTransformer._pos_embed(self, x) + 2 * self.shift

    model._pos_embed = MethodType(doubled, model) if bound else partial(doubled, model)
    twice = encoder(images)
    assert not torch.allclose(twice, shifted, atol=1e-2)
    torch.testing.assert_close(encoder(images, every), twice)
    if bound:  # torch 2.6 cannot trace the type of a partial
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images, every), twice)


def test_a_compiled_backbone(build, images_for) -> None:
    backbone = build("vit_cls", wrapped=False)
    encoder = MaskedViT(torch.compile(backbone, backend="eager"))
    images, context = images_for(encoder, 2), random_context(encoder, 5, ragged=True)
    assert torch.equal(encoder(images, context), MaskedViT(backbone)(images, context))


def _encode(encoder: MaskedViT, images: torch.Tensor, context: TokenSet) -> torch.Tensor:
    with torch.no_grad():
        return encoder(images, context)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit_cls", "beit"])
def test_a_spawned_worker(kind, build, images_for) -> None:
    """Law 13: what makes an encoder safe to share travels to a new process, as no lock would."""
    encoder = build(kind)
    images, context = images_for(encoder, 2), random_context(encoder, 5, ragged=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        features = pool.submit(_encode, encoder, images, context).result()
    torch.testing.assert_close(features, _encode(encoder, images, context))
