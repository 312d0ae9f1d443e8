"""Law 14: encoder, predictor and loss compile as one function, without a graph break.

`backend="aot_eager"` traces forward and backward as the default backend does, and leaves out the
generation of machine code, which takes most of the time; `slow` tests do that too.
"""

import pytest
import torch

from jepakit import (
    Masks,
    MultiBlockMask,
    TokenSet,
    masked_smooth_l1,
    mean_tokens,
    normalize_targets,
    put_tokens,
    take_tokens,
)

pytestmark = pytest.mark.no_hook


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    torch.compiler.reset()


def sampled(parts, seed: int, *, padded: bool, batch: int = 3) -> Masks:
    masks = parts.sampler(batch, generator=torch.Generator().manual_seed(seed))
    contexts, targets = masks.context, masks.targets
    if padded:
        return Masks(*(TokenSet(s.idx, s.valid, s.grid_size, True) for s in (contexts, targets)))
    shortest = [s.idx[..., : s.counts().min()] for s in (contexts, targets)]
    return Masks(
        *(
            TokenSet(idx, torch.ones_like(idx, dtype=torch.bool), contexts.grid_size, False)
            for idx in map(torch.Tensor.contiguous, shortest)
        )
    )


def loss_function(parts, *, autocast: bool):
    def loss(images: torch.Tensor, teacher_tokens: torch.Tensor, masks: Masks) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            context = parts.encoder(images, masks.context)
            target = take_tokens(normalize_targets(teacher_tokens), masks.targets)
            pred = parts.predictor(context, masks.context, masks.targets)
            return masked_smooth_l1(pred, target, masks.targets.valid)

    return loss


def gradients(parameters, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    for parameter in parameters.values():
        parameter.grad = None
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in parameters.items()}


def assert_compiles(parts, parameters, *, padded: bool, autocast: bool, backend: str) -> None:
    eager = loss_function(parts, autocast=autocast)
    compiled = torch.compile(eager, fullgraph=True, backend=backend)
    # Fused code rounds half precision at other places.
    tolerance = 0.1 if autocast else 1e-4
    if padded:
        assert not sampled(parts, 0, padded=True).context.valid.all()
    for seed in (0, 1):  # other masks, of other lengths
        images = torch.randn(3, 3, 32, 32)
        masks = sampled(parts, seed, padded=padded)
        tokens = parts.teacher(images)
        value, expected = compiled(images, tokens, masks), eager(images, tokens, masks)
        assert value.dtype == torch.float32 and torch.isfinite(value)
        torch.testing.assert_close(value, expected, rtol=tolerance / 10, atol=0)
        ours, theirs = gradients(parameters, value), gradients(parameters, expected)
        largest = max(gradient.abs().max() for gradient in theirs.values())
        for name in theirs:
            assert torch.isfinite(ours[name]).all(), name
            assert (ours[name] - theirs[name]).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize(
    ("kind", "padded", "autocast"),
    [
        ("vit", True, True),
        ("eva", True, False),
        pytest.param("vit", False, False, marks=pytest.mark.slow),
        pytest.param("vit", True, False, marks=pytest.mark.slow),
        pytest.param("eva", True, True, marks=pytest.mark.slow),
        pytest.param("eva", False, True, marks=pytest.mark.slow),
    ],
)
def test_encoder_predictor_and_loss_are_one_graph(
    kind, padded, autocast, system, parameters_of
) -> None:
    parts = system(kind)
    assert_compiles(
        parts, parameters_of(parts), padded=padded, autocast=autocast, backend="aot_eager"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "predictor", [{"position": "rope"}, {"position": "learned", "joint": True}]
)
def test_other_predictors_are_one_graph(predictor, system, parameters_of) -> None:
    parts = system(**predictor)
    assert_compiles(parts, parameters_of(parts), padded=True, autocast=True, backend="aot_eager")


@pytest.mark.slow
def test_to_machine_code(system, parameters_of) -> None:
    parts = system()
    assert_compiles(parts, parameters_of(parts), padded=True, autocast=True, backend="inductor")


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_every_forward_alone(padded, system) -> None:
    parts = system()
    images = torch.randn(3, 3, 32, 32)
    masks = sampled(parts, 0, padded=padded)
    context = parts.encoder(images, masks.context).detach()
    tokens = parts.teacher(images)
    calls = {
        "encoder": (parts.encoder, (images, masks.context)),
        "encoder, everything": (parts.encoder, (images,)),
        "features": (lambda x: parts.encoder.extract_features(x, pool="cls"), (images,)),
        "intermediates": (
            lambda x, c: parts.encoder.forward_intermediates(x, [0], c)[0],
            (images, masks.context),
        ),
        "predictor": (parts.predictor, (context, masks.context, masks.targets)),
        "grid": (parts.predictor.predict_grid, (context, masks.context)),
        "teacher": (parts.teacher, (images,)),
        "take": (take_tokens, (tokens, masks.targets)),
        "put": (put_tokens, (context, masks.context)),
        "mean": (mean_tokens, (context, masks.context)),
        "masks": (lambda s: s.to_mask().float() + s.coverage()[:, None], (masks.context,)),
        "complement": (lambda s: s.complement().idx.float(), (masks.context,)),
    }
    failed = {}
    for name, (function, arguments) in calls.items():
        torch.compiler.reset()
        with torch.no_grad():
            expected = function(*arguments)
            try:
                compiled = torch.compile(function, fullgraph=True, backend="eager")(*arguments)
            except Exception as error:
                failed[name] = repr(error)[:300]
                continue
        torch.testing.assert_close(compiled, expected)
    if failed.keys() == {"complement"}:
        del failed["complement"]  # its length depends on the values
    assert not failed


def test_backbones_work_uncompiled_after_compiling(system) -> None:
    """The context is set inside the traced forward, and must be gone after it."""
    parts = system()
    images = torch.randn(3, 3, 32, 32)
    expected = parts.encoder(images)
    compiled = torch.compile(parts.encoder, fullgraph=True, backend="eager")
    for seed in range(2):
        compiled(images, sampled(parts, seed, padded=True).context)
        assert torch.equal(parts.encoder(images), expected)
        torch.testing.assert_close(compiled(images), expected)


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_bfloat16_autocast_is_close_to_float32(kind, system) -> None:
    parts = system(kind, depth=2)
    images = torch.randn(3, 3, 32, 32)
    masks = sampled(parts, 0, padded=True)
    tokens = parts.teacher(images)
    with torch.no_grad():
        half = loss_function(parts, autocast=True)(images, tokens, masks)
        full = loss_function(parts, autocast=False)(images, tokens, masks)
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize("position", ["sincos", "rope", "learned"])
def test_whole_bfloat16_modules(kind, position, system) -> None:
    parts = system(kind, position=position)
    images = torch.randn(3, 3, 32, 32)
    masks = sampled(parts, 0, padded=True)
    tokens = parts.teacher(images)
    expected = loss_function(parts, autocast=False)(images, tokens, masks)
    for module in (parts.encoder, parts.predictor):
        module.bfloat16()
    value = loss_function(parts, autocast=False)(images.bfloat16(), tokens, masks)
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("dynamic", [True, None])
def test_default_masks_compile_once(dynamic, system) -> None:
    """Traps: a graph for each context length; checks of numbers that symbolic ones do not pass.

    Contexts have one length, targets a few. By default the second length makes a second graph, for
    all lengths; with `dynamic=True` the first one already is.
    """
    parts, graphs = system("vit"), []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    sampler = MultiBlockMask(parts.encoder.grid_size, num_targets=2, target_scale=(0.05, 0.2))
    eager = loss_function(parts, autocast=False)
    compiled = torch.compile(eager, fullgraph=True, backend=count, dynamic=dynamic)
    images, lengths = torch.randn(3, 3, 32, 32), set()
    tokens = parts.teacher(images)
    for seed in range(12):
        masks = sampler(3, generator=torch.Generator().manual_seed(seed))
        lengths.add((masks.context.shape[1], masks.targets.shape[2]))
        torch.testing.assert_close(compiled(images, tokens, masks), eager(images, tokens, masks))
    assert len(lengths) >= 3 and len({length for length, _ in lengths}) == 1
    assert len(graphs) == (1 if dynamic else 2)
