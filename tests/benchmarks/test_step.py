"""What `benchmarks/step.py` counts is what a pencil counts, and the script runs to its end."""

import json
from functools import partial

import pytest
import torch
from torch import nn

BATCH = 2


def test_multiply_adds_and_bytes_of_a_linear_layer(script) -> None:
    costs = script("step_costs")
    layer, x = nn.Linear(8, 16), torch.randn(BATCH, 3, 8, requires_grad=True)
    cost = costs.count(lambda: layer(x).sum(), [layer], BATCH)
    assert cost.multiply_adds == 3 * (3 * 8 * 16)  # forward, and backward for weight and input
    assert cost.saved_bytes == 3 * 8 * 4  # the input; the weight is a parameter


def test_bytes_of_a_view_count_once_and_whole(script) -> None:
    costs = script("step_costs")
    x = torch.randn(BATCH, 10, requires_grad=True)
    cost = costs.count(lambda: (x[:, :2].sin() * x[:, 2:4].cos()).sum(), [], BATCH)
    # x for both views, and the two factors, of two numbers each
    assert cost.saved_bytes == 4 * (10 + 2 + 2)


@pytest.mark.no_hook  # its checks of values would read fake tensors
@pytest.mark.parametrize(("published", "padded"), [(False, True), (True, False)])
def test_costs_on_fake_tensors_are_those_of_a_real_step(script, published, padded) -> None:
    """Also at sizes between the counted ones: cost is a quadratic of the numbers of tokens."""
    module, costs = script("step"), script("step_costs")
    step = module.Step(module.MODELS["tiny"], module.Way("", published=published), "cpu")
    n, k = 23, 9
    masks = module.masks_of_lengths(step.grid_size, n, k, padded)
    images = torch.randn(BATCH, 3, 32, 32)
    real = costs.count(lambda: step.loss(images, masks), step.modules, BATCH)
    counted = module.cost_model("tiny", published, False, padded).mean([(n, k)])
    assert counted == pytest.approx(real, rel=1e-6)


def test_multiply_adds_are_those_of_a_pencil(script) -> None:
    module, costs = script("step"), script("step_costs")
    step = module.Step(module.MODELS["tiny"], module.Way("", published=True), "cpu")
    n, k, d, hidden = 20, 6, 32, 128
    masks = module.masks_of_lengths(step.grid_size, n, k, False)
    images = torch.randn(BATCH, 3, 32, 32)
    cost = costs.count(lambda: step.loss(images, masks), step.modules, BATCH)

    def block(tokens: int) -> int:
        return tokens * (4 * d * d + 2 * d * hidden) + 2 * tokens * tokens * d

    patches = 64 * (3 * 4 * 4) * d
    sequence = block(n + k) + k * d * d  # and the projection to the encoder's width
    expected = patches + block(64)  # the teacher, forward only
    expected += 2 * patches + 3 * block(n)  # pixels need no gradient
    expected += 3 * (4 * sequence + n * d * d)
    assert cost.multiply_adds == expected


def test_a_cost_that_is_no_quadratic_is_refused(script) -> None:
    costs = script("step_costs")
    points = [(4, 2), (8, 2), (6, 2), (4, 3), (4, 4), (8, 4), (7, 3)]
    square = costs.CostModel(lambda n, k: costs.Cost(3.0 * n * k, 2.0 * k), points)
    assert square.mean([(10, 1), (2, 5)]) == pytest.approx((30.0, 6.0))
    with pytest.raises(RuntimeError, match="no quadratic"):
        costs.CostModel(lambda n, k: costs.Cost(float(n**3), 0.0), points)


def found(script, call) -> list[str]:
    with script("step_costs").CountSynchronisations(answer=7) as counter:
        call()
    return counter.found


def test_reads_and_blocking_copies_are_counted(script) -> None:
    """Trap: a loop that waits for the device in every step, and nothing says so."""
    there, here = torch.ones(3, device="meta"), torch.ones(3)
    assert found(script, lambda: int(there.sum())) == ["_local_scalar_dense"]
    assert found(script, lambda: bool((there > 0).all())) == ["_local_scalar_dense"]
    assert found(script, lambda: there.tolist()) == ["blocking copy"]
    assert found(script, lambda: here.to("meta")) == ["blocking copy"]
    assert found(script, lambda: there.copy_(here)) == ["blocking copy"]
    for call in (
        lambda: here.to("meta", non_blocking=True),
        lambda: there.copy_(here, non_blocking=True),
        lambda: int(here.sum()),
        lambda: there.to(torch.float64),
        lambda: here.nonzero(),
        lambda: there[there.long()],
    ):
        assert found(script, call) == []
    with script("step_costs").CountSynchronisations(answer=7) as counter:
        for call in (there.nonzero, lambda: there[there > 0]):
            with pytest.raises(NotImplementedError):
                call()
    assert len(counter.found) >= 2


def test_no_way_waits_for_the_device(script) -> None:
    """Masks are drawn in the step; before, padding read the longest length from the device."""
    module = script("step")
    model = module.MODELS["tiny"]
    for way in module.ways((8, 8)):
        assert module.host_synchronisations(model, way, 4) == [], way


@pytest.mark.slow
@pytest.mark.no_hook
def test_lengths_that_are_marked_give_one_graph(script) -> None:
    module = script("step")
    for way in module.ways((8, 8)):
        assert module.graphs_compiled(module.MODELS["tiny"], way, 4, 12, marked=True) == 1


@pytest.mark.no_hook
def test_counts_at_a_tiny_scale(run_script, tmp_path) -> None:
    written = tmp_path / "step.json"
    small = ("--models", "tiny", "--batch-sizes", 4, "--draws", 3, "--steps", 0)
    run_script("step", *small, "--time-batch-size", 0, "--threads", 1, "--write", written)
    rows = json.loads(written.read_text())["rows"]
    costs = {row["name"]: row for row in rows if row["kind"] == "cost"}
    assert len(costs) == len(rows) == 7
    assert costs["fixed (the default)"]["context"] == 16
    assert costs["pad"]["multiply_adds"] > costs["fixed (the default)"]["multiply_adds"]
    text = written.with_suffix(".md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "tiny, 8 x 8 tokens: tokens of context + targets | batch 4" in text


@pytest.mark.slow
@pytest.mark.no_hook
@pytest.mark.parametrize("option", ["--time-batch-size", "--throughput"])
def test_times_at_a_tiny_scale(run_script, monkeypatch, tmp_path, option) -> None:
    """The table of an accelerator is made on a CPU: its figures need one, its code does not."""
    # The default backend generates machine code, which takes most of the time.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    written = tmp_path / "step.json"
    value = () if option == "--throughput" else (2,)
    small = ("--models", "tiny", "--batch-sizes", 2, "--draws", 3, "--steps", 2, "--rounds", 1)
    run_script("step", *small, option, *value, "--threads", 1, "--write", written)
    rows = json.loads(written.read_text())["rows"]
    timed = [row for row in rows if row["kind"] in ("time", "throughput")]
    if option != "--throughput":
        graphs = [row for row in rows if row["kind"] == "graphs"]
        assert len(graphs) == 7 and all(row["graphs_marked"] == 1 for row in graphs)
    assert len(timed) == 7 and all(not row.get("error") for row in timed)
    assert all(min(row["seconds"]) > 0 for row in timed)


@pytest.mark.no_hook
def test_what_fails_on_the_accelerator_is_a_row(script, monkeypatch) -> None:
    """Trap: one size that does not fit, and the figures of all others are lost."""
    module = script("step")

    def warm_up(call, device, *, compiled):
        raise torch.OutOfMemoryError("out of memory\nTried to allocate")

    monkeypatch.setattr(module, "warm_up", warm_up)
    options = {"peak_tflops": None, "deadline": 0.0, "rounds": 1}
    rows = list(module.throughput_rows("tiny", torch.device("cpu"), **options))
    errors = [row["error"] for row in rows]
    assert errors[:4] == ["OutOfMemoryError: out of memory"] * 4
    assert errors[4:] == ["not measured: no time left"] * 3
    assert "not measured" in module.table(rows)
