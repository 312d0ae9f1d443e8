"""Law 9: `EMATeacher` is the student at step 0, its average later, and never anything else."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepakit import EMATeacher, MaskedViT, constant, cosine, linear


class Student(nn.Module):
    """Every kind of tensor that a module can hold."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(drop)
        self.second = nn.Linear(4, 2)
        self.register_buffer("index", torch.tensor([7, 3, 5]))
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("fleeting", torch.tensor([0.5]), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.norm(self.first(x))).relu()) * self.scale


def student(seed: int = 0, **arguments: float) -> Student:
    torch.manual_seed(seed)
    module = Student(**arguments)
    perturb(module)
    return module


def perturb(module: nn.Module) -> None:
    """A stand-in for an optimiser step, over every kind of tensor."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
            elif buffer.dtype == torch.int64:
                buffer.add_(1)
            else:
                buffer.logical_not_()


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in (*module.named_parameters(), *module.named_buffers())}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# Step 0


def test_starts_as_an_exact_copy() -> None:
    module = student()
    before = tensors(module)
    teacher = EMATeacher(module, 0.99)
    assert_same(tensors(teacher.module), before)
    assert_same(tensors(module), before)
    ours, theirs = tensors_in_place(teacher.module), tensors_in_place(module)
    assert not {t.data_ptr() for t in ours} & {t.data_ptr() for t in theirs}
    assert all(parameter.requires_grad for parameter in module.parameters())


def tensors_in_place(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_pretrained_weights_survive(name) -> None:
    """Trap: re-initialising every Linear after `from pretrained`, or after the copy was made."""
    backbone = timm.create_model(
        name, img_size=32, depth=2, embed_dim=64, num_heads=4, num_classes=0
    )
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_()  # a stand-in for downloaded weights
    weights = {key: value.clone() for key, value in backbone.state_dict().items()}
    encoder = MaskedViT(backbone)
    teacher = EMATeacher(encoder, 0.99)
    for holder in (backbone, encoder.backbone, teacher.module.backbone):
        assert_same(holder.state_dict(), weights)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher(images), encoder.eval()(images))


# The average


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.one_of(
        st.floats(0, 1),
        st.builds(linear, st.floats(0, 1), st.floats(0, 1), steps=st.integers(0, 8)),
        st.builds(cosine, st.floats(0, 1), st.floats(0, 1), steps=st.integers(0, 8)),
        st.builds(constant, st.floats(0, 1)),
    ),
)
def test_is_the_moving_average(seed, steps, momentum) -> None:
    """`update` uses `schedule(step)`, then counts. Trap: a schedule divided by 0 steps."""
    module = student(seed)
    teacher = EMATeacher(module, momentum)
    expected = {name: tensor.double() for name, tensor in tensors(module).items()}
    parameters = dict(module.named_parameters())
    for step in range(steps):
        perturb(module)
        m = momentum(step) if callable(momentum) else momentum
        assert teacher.step == step
        assert teacher.momentum == m
        teacher.update(module)
        for name, tensor in tensors(module).items():
            if name in parameters:
                expected[name] = m * expected[name] + (1 - m) * tensor.double()
            else:
                expected[name] = tensor.double()
    assert teacher.step == steps
    for name, tensor in tensors(teacher.module).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_momentum_1_freezes_and_0_copies() -> None:
    """Bit for bit; and buffers are copied in either case."""
    module = student()
    start = tensors(module)
    frozen, copied = EMATeacher(module, 1), EMATeacher(module, 0)
    for _ in range(3):
        perturb(module)
        frozen.update(module)
        copied.update(module)
    now = tensors(module)
    assert_same(tensors(copied.module), now)
    parameters = dict(module.named_parameters())
    assert_same(
        tensors(frozen.module),
        {name: start[name] if name in parameters else now[name] for name in now},
    )


def test_buffers_are_copied_never_averaged() -> None:
    """Traps: Swin's integer relative position index averaged to zero; running statistics never
    copied; non-persistent buffers never refreshed."""
    module = student()
    teacher = EMATeacher(module, 0.9)
    for _ in range(3):
        perturb(module)
        module.train()(torch.randn(5, 3))  # moves the running statistics
        teacher.update(module)
        assert_same(dict(teacher.module.named_buffers()), dict(module.named_buffers()))
    assert teacher.module.index.tolist() == [11, 7, 9]
    assert teacher.module.norm.num_batches_tracked == module.norm.num_batches_tracked
    assert teacher.module.fleeting != 0.5


def test_swin_keeps_its_index() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1))
    name = "layers.0.blocks.0.attn.relative_position_index"
    before = swin.get_buffer(name).clone()
    teacher = EMATeacher(swin, 0.996)
    teacher.update(swin)
    assert torch.equal(teacher.module.get_buffer(name), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_student_moves_a_float32_teacher(dtype) -> None:
    """Traps: a bfloat16 average at momentum 0.999 stands still; fused calls refuse mixed types."""
    module = nn.Linear(8, 8).to(dtype)
    teacher = EMATeacher(module, 0.999)
    start = module.weight.detach().float()
    assert torch.equal(teacher.module.weight, start)
    assert all(tensor.dtype == torch.float32 for tensor in tensors(teacher.module).values())
    with torch.no_grad():
        module.weight.add_(0.01)
    end = module.weight.detach().float()
    for _ in range(200):
        teacher.update(module)
    expected = start + (1 - 0.999**200) * (end - start)
    torch.testing.assert_close(teacher.module.weight, expected, rtol=0, atol=2e-6)
    assert module.weight.dtype == dtype


def test_other_types_stay() -> None:
    module = nn.Linear(4, 4).double()
    teacher = EMATeacher(module, 0.5)
    perturb(module)
    teacher.update(module)
    assert teacher.module.weight.dtype == torch.float64


def test_tied_parameters_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    teacher = EMATeacher(module, 0.5)
    before = module[0].weight.detach().clone()
    perturb(module)
    teacher.update(module)
    assert teacher.module[0].weight is teacher.module[1].weight
    torch.testing.assert_close(teacher.module[0].weight, (before + module[0].weight.detach()) / 2)


# Wrapped students


def _updated(wrapped: nn.Module, module: nn.Module, teacher: EMATeacher) -> None:
    """The teacher takes the student's step, through its wrapper, under the student's names."""
    before = tensors(teacher.module)
    assert not any("module." in name or "_orig_mod" in name for name in teacher.module.state_dict())
    perturb(module)
    teacher.update(wrapped)
    now = tensors(module)
    clean = {name.replace("_orig_mod.", ""): tensor for name, tensor in now.items()}
    after = tensors(teacher.module)
    for name, parameter in teacher.module.named_parameters():
        torch.testing.assert_close(parameter, (before[name] + clean[name]) / 2)
    for name in dict(teacher.module.named_buffers()):
        assert torch.equal(after[name], clean[name])


def test_ddp_student(process_group) -> None:
    """Trap: on a wrapper every name starts with `module.`, and updates silently stop."""
    module = student()
    wrapped = DistributedDataParallel(module)
    _updated(wrapped, module, EMATeacher(module, 0.5))
    _updated(wrapped, module, EMATeacher(wrapped, 0.5))
    _updated(module, module, EMATeacher(wrapped, 0.5))


@pytest.mark.parametrize("inner", [False, True], ids=["whole", "submodule"])
def test_compiled_student(inner) -> None:
    """Trap: `_orig_mod.` names from `torch.compile`: nothing matches, nothing is said."""
    module = student()
    plain = copy.deepcopy(module)
    if inner:
        module.second = torch.compile(module.second, backend="eager")
        wrapped = module
    else:
        wrapped = torch.compile(module, backend="eager")
    _updated(wrapped, module, EMATeacher(plain, 0.5))
    if not inner:
        _updated(wrapped, module, EMATeacher(wrapped, 0.5))
        _updated(module, module, EMATeacher(wrapped, 0.5))


def test_compiled_ddp_student(process_group) -> None:
    module = student()
    wrapped = torch.compile(DistributedDataParallel(module), backend="eager")
    _updated(wrapped, module, EMATeacher(wrapped, 0.5))
    wrapped = DistributedDataParallel(torch.compile(module, backend="eager"))
    _updated(wrapped, module, EMATeacher(wrapped, 0.5))


@pytest.mark.no_hook
@torch.no_grad()
def test_compiled_submodule_runs_in_the_teacher() -> None:
    """The copy of a compiled part runs on the teacher's weights, not on the student's."""
    module = student().eval()
    module.second = torch.compile(module.second, backend="eager")
    teacher = EMATeacher(module, 0.0)
    x = torch.randn(5, 3)
    before = module(x)
    assert torch.equal(teacher(x), before)
    perturb(module)
    assert torch.equal(teacher(x), before)
    assert not torch.equal(module(x), before)
    teacher.update(module)
    assert torch.equal(teacher(x), module(x))


# What does not fit


def test_other_names_raise() -> None:
    """Trap: names that do not match are skipped in silence."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    before = tensors(teacher.module)
    module.extra = nn.Linear(2, 2)
    del module.second
    text = (
        r"student: must have the names .* lacks \['second.bias', 'second.weight'\] and adds "
        r"\['extra.bias', 'extra.weight'\] \(2 missing, 2 extra\)"
    )
    with pytest.raises(ValueError, match=text):
        teacher.update(module)
    assert teacher.step == 0
    assert_same(tensors(teacher.module), before)


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("where", ["missing", "extra"])
def test_one_name_too_many_or_few_raises(kind, where) -> None:
    module, teacher = student(), EMATeacher(student(), 0.5)
    target = module if where == "extra" else teacher.module
    if kind == "parameter":
        target.more = nn.Parameter(torch.zeros(1))
    else:
        target.register_buffer("more", torch.zeros(1, dtype=torch.int64), persistent=False)
    expected = {
        "missing": r"lacks \['more'\] and adds none \(1 missing, 0 extra\)",
        "extra": r"lacks none and adds \['more'\] \(0 missing, 1 extra\)",
    }
    with pytest.raises(ValueError, match=expected[where]):
        teacher.update(module)


@pytest.mark.parametrize("name", ["index", "scale", "first"])
def test_other_shapes_raise(name) -> None:
    """A buffer of one element would be broadcast by `copy_` otherwise."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    before = tensors(teacher.module)
    if name == "first":
        module.first = nn.Linear(1, 4)
        text = r"student: first.weight has shape \(4, 1\), the teacher \(4, 3\); they must be equal"
    else:
        setattr(module, name, torch.zeros(1, dtype=getattr(module, name).dtype))
        text = rf"student: {name} has shape \(1,\)"
    with pytest.raises(ValueError, match=text):
        teacher.update(module)
    assert_same(tensors(teacher.module), before)


@pytest.mark.parametrize("momentum", [-0.1, 1.0001, float("nan")])
def test_momentum_outside_raises(momentum) -> None:
    with pytest.raises(ValueError, match=r"momentum=.*: must lie in \[0, 1\]"):
        EMATeacher(student(), momentum)
    scheduled = EMATeacher(student(), lambda step: momentum if step == 1 else 0.5)
    scheduled.update(student())
    before = tensors(scheduled.module)
    with pytest.raises(ValueError, match=r"momentum schedule at step 1=.*: must lie in \[0, 1\]"):
        scheduled.update(student(1))
    assert_same(tensors(scheduled.module), before)
    assert scheduled.step == 1


@pytest.mark.no_hook
def test_other_types_raise() -> None:
    with pytest.raises(TypeError, match=r"momentum='0.9': must be a number, got str"):
        EMATeacher(student(), "0.9")
    with pytest.raises(TypeError, match=r"student=dict: must be a torch.nn.Module"):
        EMATeacher({}, 0.9)


# State


def _run(teacher: EMATeacher, module: nn.Module, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        perturb(module)
        teacher.update(module)


def test_resumed_is_uninterrupted(tmp_path) -> None:
    """Trap: a momentum schedule that starts again on resume. Loads with `weights_only=True`."""
    schedule = linear(0.1, 1.0, steps=7)
    module = student()
    whole = EMATeacher(module, schedule)
    _run(whole, module, range(7))

    module = student()
    first = EMATeacher(module, schedule)
    _run(first, module, range(4))
    state = {"teacher": first.state_dict(), "student": module.state_dict()}
    torch.save(state, tmp_path / "state.pt")

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    module = student(5)
    second = EMATeacher(module, schedule)
    module.load_state_dict(state["student"])
    # Of the non-persistent buffers and nothing else, a checkpoint does not know.
    module.fleeting.copy_(first.module.fleeting)
    module.index.copy_(first.module.index)
    second.load_state_dict(state["teacher"])
    assert second.step == 4
    assert second.momentum == first.momentum
    _run(second, module, range(4, 7))
    assert_same(tensors(second.module), tensors(whole.module))
    assert second.step == whole.step == 7


def test_state_dict_names_are_the_students() -> None:
    """The averaged weights load into a plain student."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    _run(teacher, module, range(3))
    names = {f"module.{name}" for name in module.state_dict()}
    assert set(teacher.state_dict()) == names | {"_extra_state"}
    fresh = student(3)
    fresh.load_state_dict(teacher.module.state_dict())
    x = torch.randn(4, 3)
    torch.testing.assert_close(fresh.eval()(x), teacher(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(duplicate) -> None:
    module = student()
    teacher = EMATeacher(module, linear(0.5, 1.0, steps=10))
    _run(teacher, module, range(2))
    other = duplicate(teacher)
    assert_same(tensors(other.module), tensors(teacher.module))
    assert other.step == 2 and other.momentum == teacher.momentum and not other.training
    before = tensors(teacher.module)
    _run(other, module, range(2, 4))
    assert other.step == 4 and teacher.step == 2
    assert_same(tensors(teacher.module), before)
    _run(teacher, student(), range(0))


def test_repr_tells_momentum_and_step() -> None:
    teacher = EMATeacher(student(), linear(0.996, 1.0, steps=10))
    teacher.update(student())
    assert "momentum=linear(start=0.996, end=1.0, steps=10), step=1" in repr(teacher)


# Gradient and mode


def test_never_a_gradient() -> None:
    module = student()
    teacher = EMATeacher(module, 0.5)
    x = torch.randn(4, 3, requires_grad=True)
    out = teacher(x)
    assert not out.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    module(x).sum().backward()
    teacher.update(module)
    assert all(p.grad is None and p.grad_fn is None for p in teacher.parameters())
    assert all(parameter.grad is not None for parameter in module.parameters())
    # Turned on by somebody's `requires_grad_()` over a parent, the forward gives none all the same.
    teacher.requires_grad_(True)
    assert not teacher(x).requires_grad
    teacher.update(module)


def test_an_update_is_seen_by_no_graph() -> None:
    """`update` between forward and backward leaves the student's graph as it is."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    loss = (module(torch.randn(4, 3)) - teacher(torch.randn(4, 3))).square().sum()
    teacher.update(module)
    loss.backward()


def test_always_eval() -> None:
    """Trap: the copy stays in train mode, and drop-path makes the targets random."""
    module = student(drop=0.5).train()
    parent = nn.ModuleDict({"student": module, "teacher": EMATeacher(module, 0.5)})
    teacher = parent["teacher"]
    x = torch.randn(6, 3)
    for _ in range(2):
        assert not any(part.training for part in teacher.modules())
        assert torch.equal(teacher(x), teacher(x))
        assert not torch.equal(module(x), module(x))
        parent.train()
        teacher.train()
        teacher.update(module)
    assert module.training


def test_drop_path_is_the_students_alone() -> None:
    backbone = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=4,
        embed_dim=64,
        num_heads=4,
        num_classes=0,
        drop_path_rate=0.5,
    )
    encoder = MaskedViT(backbone).train()
    teacher = EMATeacher(encoder, 0.5).train()
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(teacher(images), teacher(images))
    assert not torch.equal(encoder(images), encoder(images))


def test_called_like_the_student() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, *, b: Tensor) -> dict[str, Tensor]:
            return {"sum": a + b}

    teacher = EMATeacher(Two(), 0.5)
    assert teacher(torch.ones(1), b=torch.ones(1))["sum"] == 2
    teacher.update(Two())  # without a single parameter
    assert teacher.step == 1


def test_moves_with_to() -> None:
    teacher = EMATeacher(student(), 0.5).to(torch.float64)
    assert teacher.module.first.weight.dtype == torch.float64
    teacher.update(student(1))
    assert teacher.module.first.weight.dtype == torch.float64
