"""Types, compilation, checkpoints, and what is refused."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jepakit import constant, linear
from jepakit.nn import VectorQuantizer
from jepakit.optim import param_groups

VARIANTS = {
    "hard": {},
    "cosine": {"cosine": True},
    "gumbel": {"temperature": 0.5},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_are_float32(variant: str, dtype: torch.dtype) -> None:
    """Features in half precision, with and without autocast, give the results of float32."""
    x = torch.randn(64, 4).to(dtype)
    found = []
    for features, autocast in ((x.float(), False), (x, False), (x.float(), True), (x, True)):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(8, 4, **VARIANTS[variant])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            for _ in range(3):
                out = quantizer(features)
        assert out.quantized.dtype == features.dtype
        assert out.loss.dtype == out.perplexity.dtype == torch.float32
        found.append((quantizer.codebook, out.indices, out.loss))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_codebook_in_half_precision_is_refused() -> None:
    """Trap: a moving average in bfloat16 never moves."""
    quantizer = VectorQuantizer(8, 4).bfloat16()
    with pytest.raises(TypeError, match=r"codebook is torch\.bfloat16: a moving average in half"):
        quantizer(torch.randn(3, 4))
    quantizer.eval()(torch.randn(3, 4))


@pytest.mark.no_hook
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_as_one_graph(variant: str, training: bool) -> None:
    """Law 14, forward and backward; the buffers move alike."""
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(8, 4, **VARIANTS[variant]).train(training)
        call = quantizer
        if compiled:
            call = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
        x = torch.randn(5, 6, 4, requires_grad=True)
        valid = torch.arange(6) < torch.tensor([6, 1, 0, 3, 4]).unsqueeze(1)
        for _ in range(2):
            out = call(x, valid)
            (out.quantized.square().sum() + out.loss).backward()
        found.append((quantizer.codebook, x.grad, *out))
    if variant == "gumbel" and training:
        return  # random numbers differ between the two
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_host_synchronisation(variant: str, training: bool) -> None:
    """On the meta device there are no values: `.item()` and boolean indexing would raise."""
    quantizer = VectorQuantizer(8, 4, **VARIANTS[variant]).to("meta").train(training)
    x = torch.empty(3, 5, 4, device="meta", requires_grad=True)
    out = quantizer(x, torch.empty(3, 5, device="meta", dtype=torch.bool))
    (out.loss + out.quantized.sum()).backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_is_uninterrupted(variant: str) -> None:
    """Law 13: through a file that holds tensors alone, bit for bit, a fresh one included."""

    def run(quantizer: nn.Module, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            quantizer(torch.randn(20, 4, generator=generator), generator=generator)

    for first in (0, 3):
        quantizer = VectorQuantizer(8, 4, refresh_ratio=0.3, momentum=0.7, **VARIANTS[variant])
        resumed = VectorQuantizer(8, 4, refresh_ratio=0.3, momentum=0.7, **VARIANTS[variant])
        run(quantizer, range(first))
        file = io.BytesIO()
        torch.save(quantizer.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        copied = copy.deepcopy(quantizer)
        for each in (quantizer, resumed, copied):
            run(each, range(first, 6))
        assert torch.equal(resumed.codebook, quantizer.codebook)
        assert torch.equal(copied.codebook, quantizer.codebook)


def test_no_gradient_reaches_the_codebook() -> None:
    """It has no parameters, for the optimiser or for weight decay, and no graph stays behind."""
    quantizer = VectorQuantizer(8, 4, temperature=1.0)
    x = torch.randn(9, 4, requires_grad=True)
    out = quantizer(x)
    assert not list(quantizer.parameters())
    assert not quantizer.codebook.requires_grad
    quantizer(x)  # moves what the first graph was made with
    (out.loss + out.quantized.square().sum()).backward()
    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "quantizer": quantizer})
    assert sum(len(group["params"]) for group in param_groups(model, 0.1)) == 2


def test_repr_is_the_call() -> None:
    quantizer = VectorQuantizer(8, 4, cosine=True, temperature=linear(1.0, 0.1, steps=9))
    scope = {"VectorQuantizer": VectorQuantizer, "linear": linear}
    assert repr(eval(repr(quantizer), scope)) == repr(quantizer)


def test_arguments_of_configuration_files() -> None:
    quantizer = VectorQuantizer(
        np.int64(8),
        np.int32(4),
        momentum=np.float32(0.5),
        commitment_weight=1,
        temperature=np.float64(2),
        refresh_ratio=0,
        smoothing=np.float64(1e-4),
    )
    plain = VectorQuantizer(
        8,
        4,
        momentum=0.5,
        commitment_weight=1.0,
        temperature=2.0,
        refresh_ratio=0.0,
        smoothing=1e-4,
    )
    assert repr(quantizer) == repr(plain)
    quantizer(torch.randn(3, 4))


@pytest.mark.no_hook
def test_a_schedule_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    quantizer = VectorQuantizer(8, 4, temperature=linear(1.0, 0.0, steps=2))
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    for step in range(3):
        assert compiled(torch.randn(3, 4), step=step).indices.shape == (3,)


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_a_step_without_a_schedule_is_refused(temperature: float | None) -> None:
    """Trap: a decreasing temperature that was forgotten, and a step that nothing reads."""
    quantizer = VectorQuantizer(8, 4, temperature=temperature)
    with pytest.raises(ValueError, match=r"step=3: must be left out, as temperature"):
        quantizer(torch.randn(3, 4), step=3)
    quantizer.eval()(torch.randn(3, 4), step=3)  # no temperature is used in eval mode


def test_lookup_takes_padding_and_codes_alone() -> None:
    quantizer = VectorQuantizer(8, 4)
    assert not quantizer.lookup(torch.tensor([-1])).any()
    with pytest.raises(ValueError, match="indices: must be -1 for padding or a code, but hold -2"):
        quantizer.lookup(torch.tensor([0, -2]))


def test_codes_that_are_not_finite_are_refused() -> None:
    quantizer = VectorQuantizer(8, 4)
    before = quantizer.codebook.clone()
    codes = torch.randn(8, 4)
    codes[3, 1] = torch.nan
    with pytest.raises(ValueError, match="codes: must be finite"):
        quantizer.start_from(codes)
    assert torch.equal(quantizer.codebook, before)


def test_a_schedule_needs_a_step() -> None:
    quantizer = VectorQuantizer(8, 4, temperature=constant(1.0))
    with pytest.raises(ValueError, match=r"step=None: must be given in training"):
        quantizer(torch.randn(3, 4))
    quantizer(torch.randn(3, 4), step=0)
    quantizer.eval()(torch.randn(3, 4))
    wrong = VectorQuantizer(8, 4, temperature=linear(1.0, -1.0, steps=4))
    with pytest.raises(ValueError, match=r"temperature\(3\)=-0\.5: must be at least 0"):
        wrong(torch.randn(3, 4), step=3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_codes": 1}, r"num_codes=1: must be at least 2"),
        ({"dim": 0}, r"dim=0: must be at least 1"),
        ({"momentum": 1.0}, r"momentum=1: must lie in \(0, 1\)"),
        ({"momentum": 0.0}, r"momentum=0: must lie in \(0, 1\)"),
        ({"commitment_weight": -1.0}, r"commitment_weight=-1: must be at least 0"),
        ({"temperature": 0.0}, r"temperature=0: must be above 0"),
        ({"refresh_ratio": 1.0}, r"refresh_ratio=1: must lie in \[0, 1\)"),
        ({"smoothing": 0.0}, r"smoothing=0: must be above 0"),
        ({"smoothing": 0.1, "cosine": True}, r"smoothing=0\.1: has no effect with cosine"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        VectorQuantizer(**{"num_codes": 8, "dim": 4, **arguments})


@pytest.mark.parametrize(
    "change",
    [
        {"momentum": 0.5},
        {"commitment_weight": 1.0},
        {"cosine": True},
        {"temperature": 1.0},
        {"refresh_ratio": 0.99},
        {"smoothing": 1.0},
    ],
)
def test_every_argument_matters(change: dict[str, float]) -> None:
    """Law 12."""
    found = []
    for arguments in ({}, change):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(8, 4, **arguments)
        for _ in range(8):
            out = quantizer(torch.randn(30, 4))
        found.append((quantizer.codebook, out.loss))
    assert any(not torch.equal(a, b) for a, b in zip(*found, strict=True))


def shape_error(quantizer: VectorQuantizer, features: Tensor, valid: Tensor | None = None) -> str:
    with pytest.raises(ValueError, match="must") as error:
        quantizer(features, valid)
    return str(error.value)


@pytest.mark.no_hook
def test_wrong_shapes() -> None:
    quantizer = VectorQuantizer(8, 4)
    x = torch.randn(2, 3, 4)
    assert "must be [*batch, 4]" in shape_error(quantizer, torch.randn(2, 5))
    assert "nothing is broadcast" in shape_error(quantizer, x, torch.ones(2, 1, dtype=torch.bool))
    assert "must have at least 1 rows" in shape_error(quantizer, x[:0])
    with pytest.raises(TypeError, match=r"generator=0: must be a torch\.Generator"):
        quantizer(x, generator=0)
    with pytest.raises(ValueError, match=r"codes \(3, 4\): must have the shape \(8, 4\)"):
        quantizer.start_from(torch.randn(3, 4))


def test_directions_without_votes_stay_directions() -> None:
    """Trap: a sum that fades to nothing, whose code has no length and then takes every vector."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 8, cosine=True, refresh_ratio=0, momentum=0.5)
    few = torch.randn(3, 8).repeat(4, 1)
    for _ in range(300):
        quantizer(few + 0.01 * torch.randn(12, 8))
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(16))


def test_a_temperature_may_fall_to_0() -> None:
    """Trap: a run that ends in an error at its last step. There the nearest code is taken."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4, temperature=linear(1.0, 0.0, steps=10))
    features = torch.randn(64, 4)
    quantizer(features, step=9)
    nearest = copy.deepcopy(quantizer).eval()(features).indices
    assert torch.equal(quantizer(features, step=10).indices, nearest)
