"""A latent world model without labels, rewards or a teacher, in one file to copy and change.

A dot moves in two rooms that a wall with a door separates; all of it is drawn in code. From random
trajectories, images and actions, an encoder and a `CausalPredictor` learn together to predict the
features of the next steps, and SIGReg keeps the features from collapsing. This takes less than
five minutes on 2 CPU cores. Then the position is read off the features linearly, predictions of 8
steps are compared with the truth, and the model plans: given an image of the goal, it searches for
actions that lead there. Pictures, numbers (`result.json`) and the model are written to `--out`.

    python examples/world_model.py
    python examples/world_model.py --sigreg-weight 0 --out collapsed    # nothing against collapse
    python examples/world_model.py --steps 2000 --seed 1 --out seed-1

All random numbers of a step depend on the seed and the step alone, so an interrupted run that is
started again with `--resume` ends with the same weights as one that was never interrupted.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

import jepakit
from jepakit.checkpoints import StopRequest, check_can_save, load_checkpoint, save_checkpoint
from jepakit.data import ResumableBatches
from jepakit.diagnostics import effective_rank, feature_std, inverse_dynamics_r2, straightness
from jepakit.losses import masked_mse, next_step_loss, sigreg
from jepakit.nn import CausalPredictor
from jepakit.optim import param_groups
from jepakit.plots import plot_curves

# The world is a unit square. A wall at x = 0.5 has a door; lengths are fractions of a side.
RADIUS = 0.06  # of the dot
WALL = (0.47, 0.53)
DOOR = (0.34, 0.66)
STRIDE = 0.12  # the way of an action of 1
HORIZON = 8  # steps of the predictions that are compared with the truth
TOLERANCE = 0.08  # a goal is reached within this distance of its centre

Policy = Callable[[Tensor, Tensor, Tensor], Tensor]  # positions, goals, images of goals -> actions


def main() -> None:
    args = parse_args()
    console, out, device = Console(), Path(args.out), torch.device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    train = random_trajectories(args.trajectories, args.frames, seed=2 * args.seed).to(device)
    test = random_trajectories(500, args.frames, seed=2 * args.seed + 1).to(device)
    torch.manual_seed(args.seed)

    encoder = image_encoder(args.image_size, args.channels, args.width).to(device)
    predictor = CausalPredictor(
        (1,),  # one vector per step
        args.width,
        action_dim=2,
        predictor_embed_dim=args.predictor_width,
        depth=args.predictor_depth,
        num_heads=args.heads,
    ).to(device)
    model = nn.ModuleDict({"encoder": encoder, "predictor": predictor})
    untrained = copy.deepcopy(encoder).eval()
    optimizer = torch.optim.AdamW(param_groups(model, args.weight_decay))
    lr = jepakit.warmup_cosine(
        args.lr, args.lr / 100, warmup_steps=args.steps // 10, steps=args.steps
    )

    def encode(positions: Tensor, encoder: nn.Module = encoder) -> Tensor:
        """Features `[*batch d]` of the images of positions `[*batch 2]`, without a gradient."""
        with torch.no_grad():
            images = render(positions, args.image_size)
            return encoder(images.flatten(0, -4)).unflatten(0, positions.shape[:-1])

    # State: a new run, or the last checkpoint of an interrupted one
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    curves: dict[str, list[tuple[int, float]]] = {
        name: [] for name in ("loss", "prediction", "rank", "std")
    }
    first, checkpoint = 0, out / "checkpoint.pt"
    if state := resumed_state(checkpoint, [*parts, "step", "curves"], args):
        first, curves = state["step"], state["curves"]
        console.print(f"resuming at step {first} of {args.steps}")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    else:
        size = f"{args.image_size} x {args.image_size}"
        console.print(
            f"{args.trajectories} trajectories of {args.frames} images {size}, {args.steps} steps"
        )

    def state_at(step: int) -> dict[str, Any]:
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        return state | {"step": step, "curves": curves, "args": vars(args)}

    check_can_save(checkpoint, state_at(first))  # a full disk is found before training

    # Training
    order = ResumableBatches(
        args.trajectories, args.batch_size, steps=args.steps, seed=args.seed, first_step=first
    )
    began = time.perf_counter()
    with progress_bar(console) as bar, StopRequest() as stop:
        task = bar.add_task("", total=args.steps, completed=first, status="")
        for step, index in enumerate(order, start=first):
            torch.manual_seed(args.seed + 1_000_003 * step)
            images = render(train.positions[index], args.image_size)  # [b t 1 h w]
            features = encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            prediction, _ = next_step_loss(
                predictor,
                features[:, :, None],
                train.actions[index],
                rollout_steps=args.rollout_steps,
                loss=masked_mse,
            )
            # Images of a trajectory are alike, SIGReg assumes independent samples: a call per step.
            gaussian = torch.stack(
                [sigreg(each, num_slices=args.slices) for each in features.unbind(1)]
            ).mean()
            loss = prediction + args.sigreg_weight * gaussian
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

            done = step + 1
            if done % 10 == 0 or done == args.steps:
                curves["loss"].append((done, loss.item()))
                curves["prediction"].append((done, prediction.item()))
                one_step = features[:, 0].detach()
                curves["rank"].append((done, effective_rank(one_step).item()))
                curves["std"].append((done, feature_std(one_step).mean().item()))
                speed = (done - first) / (time.perf_counter() - began)
                status = "  ".join(f"{name} {points[-1][1]:.3g}" for name, points in curves.items())
                status += f"  {speed:.1f} steps/s"
                bar.update(task, completed=done, status=status)
                if not console.is_terminal and (done % max(1, args.steps // 200 * 10) == 0):
                    console.print(f"step {done}/{args.steps}  {status}")
            if stop or done % args.save_every == 0 or done == args.steps:
                save_checkpoint(checkpoint, state_at(done))
            if stop:  # Ctrl-C, or SIGTERM of a cluster
                console.print(f"stopped after step {done} of {args.steps}; continue with --resume")
                raise SystemExit(stop.exit_code)
    seconds = time.perf_counter() - began
    model.eval().requires_grad_(False)

    # The position in the features
    encoders: dict[str, Callable[[Tensor], Tensor]] = {
        "raw pixels": lambda positions: render(positions, args.image_size).flatten(-3),
        "untrained encoder": lambda positions: encode(positions, untrained),
        "trained encoder": encode,
    }
    rows = {}
    for name, encoded in encoders.items():
        fit, held_out = encoded(train.positions[:500]), encoded(test.positions)
        rows[name] = {
            "position": linear_r2(fit, train.positions[:500], held_out, test.positions),
            "actions": inverse_dynamics_r2(held_out, test.actions).item(),
            "straightness": straightness(held_out).item(),
            "rank": effective_rank(held_out[:, 0]).item(),
        }
    table = Table("", "position R2", "actions R2", "straightness", "effective rank")
    for name, row in rows.items():
        digits = (f"{row[key]:.3f}" for key in ("position", "actions", "straightness"))
        table.add_row(name, *digits, f"{row['rank']:.1f}")
    console.print(table)

    # Rollouts
    features = encode(test.positions)
    truth = features[:, 1 : 1 + HORIZON]
    predicted = predictor.rollout(features[:, :1, None], test.actions[:, None, :HORIZON])
    predicted = predicted[:, 0, :, 0]  # one candidate, one vector per step
    guesses = {
        "model": predicted,
        "nothing changes": features[:, :1].expand_as(truth),
        "mean": encode(train.positions[:500]).mean(dim=(0, 1)).expand_as(truth),
    }
    # In units of the variance, which is the error of the mean over all times.
    scale = features.var(dim=(0, 1), correction=0).sum()
    rollout = {
        name: ((guess - truth).square().sum(dim=-1).mean(dim=0) / scale).tolist()
        for name, guess in guesses.items()
    }
    table = Table("rollout error", *(str(step) for step in range(1, HORIZON + 1)))
    for name, errors in rollout.items():
        table.add_row(name, *(f"{error:.2f}" for error in errors))
    console.print(table)

    # Planning
    torch.manual_seed(args.seed)
    start, goal = tasks(args.tasks, seed=args.seed)
    start, goal = start.to(device), goal.to(device)
    other_room = (start[:, 0] < 0.5) != (goal[:, 0] < 0.5)

    def planner(position: Tensor, _: Tensor, goal_image: Tensor) -> Tensor:
        """Actions from images alone: of where the dot is, and of the goal."""
        return plan(predictor, encode(position), encoder(goal_image), args)

    policies: dict[str, Policy] = {
        "planner": planner,
        "straight line": lambda position, goal, _: straight_line(position, goal, args.replan),
        "random": lambda position, *_: (
            2 * torch.rand(len(position), args.replan, 2, device=position.device) - 1
        ),
    }
    paths = {
        name: follow(policy, start, goal, args.max_steps, args.image_size)
        for name, policy in policies.items()
    }
    planning = {}
    for name, path in paths.items():
        reached = at_goal(path[:, -1], goal)
        planning[name] = {
            "all": reached.float().mean().item(),
            "same room": reached[~other_room].float().mean().item(),
            "other room": reached[other_room].float().mean().item(),
        }
    table = Table("goals reached", "all", "same room", "other room")
    for name, shares in planning.items():
        table.add_row(name, *(f"{share:.1%}" for share in shares.values()))
    console.print(table)
    console.print(
        "The model works if its rollout errors are below those of 'nothing changes', and most\n"
        "goals are reached. Features have collapsed if the position's R2 is near 0.",
        highlight=False,
        soft_wrap=True,
    )
    versions = {"jepakit": jepakit.__version__, "torch": torch.__version__}
    result = {"settings": vars(args), "versions": versions, "rows": rows, "rollout": rollout}
    result |= {"planning": planning, "curves": curves, "first_step": first, "steps": args.steps}
    # Seconds of training in this call; those of a resumed run do not include the steps before it.
    result |= {"seconds": seconds}
    (out / "result.json").write_text(json.dumps(result, indent=1))

    # Pictures
    torch.manual_seed(args.seed)
    decoder = image_decoder(args.image_size, args.width).to(device)
    fit_decoder(decoder, encode, train.positions, args)
    decoded = decoder(predicted[:4].flatten(0, 1)).unflatten(0, (-1, HORIZON)).clamp(0, 1)
    plot_curves(curves).savefig(out / "curves.png", dpi=150)
    plot_rollout(render(test.positions[:4], args.image_size), decoded).savefig(
        out / "rollout.png", dpi=150
    )
    shown = other_room.nonzero()[:4, 0]
    plot_paths({name: path[shown] for name, path in paths.items()}, goal[shown]).savefig(
        out / "plans.png", dpi=150
    )
    save_animation(out / "plan.gif", paths["planner"][shown], goal[shown])
    console.print(f"trained in {seconds:.0f} s; pictures are in {out}", highlight=False)


# The world


class Trajectories(NamedTuple):
    positions: Tensor  # [n t 2]
    actions: Tensor  # [n t-1 2]; action t leads from position t to t + 1

    def to(self, device: torch.device) -> "Trajectories":
        return Trajectories(self.positions.to(device), self.actions.to(device))


def is_free(position: Tensor) -> Tensor:
    """True where the dot does not touch the wall between the rooms."""
    x, y = position.unbind(-1)
    in_door = (y > DOOR[0] + RADIUS) & (y < DOOR[1] - RADIUS)
    return (x < WALL[0] - RADIUS) | (x > WALL[1] + RADIUS) | in_door


def move(position: Tensor, action: Tensor, substeps: int = 8) -> Tensor:
    """Move dots by actions in [-1, 1], one axis after the other, so that they slide along walls."""
    way = STRIDE / substeps * action
    for _ in range(substeps):
        for axis in torch.eye(2, device=way.device):
            moved = (position + way * axis).clamp(RADIUS, 1 - RADIUS)
            position = torch.where(is_free(moved)[:, None], moved, position)
    return position


def render(position: Tensor, size: int) -> Tensor:
    """Images `[*batch 1 size size]` of positions `[*batch 2]`: walls grey, the dot white."""
    centre = (torch.arange(size, device=position.device) + 0.5) / size
    inside_wall = (centre > WALL[0]) & (centre < WALL[1])
    outside_door = (centre < DOOR[0]) | (centre > DOOR[1])
    walls = 0.4 * (outside_door[:, None] & inside_wall).float()
    x, y = position[..., None, None, :1], position[..., None, None, 1:]
    distance = ((centre - x[..., 0]).square() + (centre[:, None] - y[..., 0]).square()).sqrt()
    dot = ((RADIUS - distance) * size + 0.5).clamp(0, 1)  # its edge is one pixel wide
    return torch.maximum(walls, dot)[..., None, :, :]


def free_positions(count: int, generator: torch.Generator) -> Tensor:
    """Positions that are uniform over the free space."""
    drawn = torch.rand(2 * count + 100, 2, generator=generator)
    drawn = RADIUS + (1 - 2 * RADIUS) * drawn
    return drawn[is_free(drawn)][:count]


def random_trajectories(count: int, frames: int, *, seed: int) -> Trajectories:
    """Dots that start anywhere and walk at random: a direction that changes at times, and noise."""
    generator = torch.Generator().manual_seed(seed)
    positions, actions = [free_positions(count, generator)], []
    direction = torch.zeros(count, 2)
    for step in range(frames - 1):
        turns = torch.rand(count, 1, generator=generator) < (0.5 if step else 1)
        direction = torch.where(turns, 2 * torch.rand(count, 2, generator=generator) - 1, direction)
        noise = 0.3 * torch.randn(count, 2, generator=generator)
        actions.append((1.3 * direction + noise).clamp(-1, 1))
        positions.append(move(positions[-1], actions[-1]))
    return Trajectories(torch.stack(positions, dim=1), torch.stack(actions, dim=1))


def tasks(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Starts and goals at least 0.3 apart, three of four pairs in different rooms.

    Those have the door above or below both ends: a dot that heads for the goal is stopped by the
    wall, or slides along it to the goal's height.
    """
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    start, goal = free_positions(80 * count, generator).chunk(2)
    is_far = (start - goal).norm(dim=-1) > 0.3
    other_room = (start[:, 0] < 0.5) != (goal[:, 0] < 0.5)
    heights = torch.stack([start[:, 1], goal[:, 1]])
    beside_door = (heights < DOOR[0]).all(dim=0) | (heights > DOOR[1]).all(dim=0)
    apart = (is_far & other_room & beside_door).nonzero()[: count - count // 4, 0]
    together = (is_far & ~other_room).nonzero()[: count // 4, 0]
    chosen = torch.cat([apart, together])
    return start[chosen], goal[chosen]


# The model


def image_encoder(size: int, channels: int, width: int) -> nn.Module:
    """Two convolutions without overlap, and one vector of variance 1 in each component."""
    side = size // 8
    return nn.Sequential(
        nn.Conv2d(1, channels, 4, stride=4),
        nn.GELU(),
        nn.Conv2d(channels, 2 * channels, 2, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(2 * channels * side * side, width),
        # Images differ in few pixels. Without it, features differ little at first, and it takes
        # SIGReg a while to spread them.
        nn.BatchNorm1d(width, affine=False),
    )


def plan(
    predictor: CausalPredictor, features: Tensor, goal: Tensor, args: argparse.Namespace
) -> Tensor:
    """Plan the next `args.replan` actions by the cross-entropy method.

    Plans are drawn from a normal distribution, rolled out in latent space, and judged by how close
    they come to the features of the goal at any step. The distribution is fitted to the best plans
    and drawn from again. Each action of a plan is held for `args.hold` steps.
    """
    shape = (len(goal), args.candidates, args.plan_steps // args.hold, 2)
    mean, std = goal.new_zeros(shape[0], 1, *shape[2:]), torch.ones((), device=goal.device)
    for _ in range(args.iterations):
        plans = (mean + std * torch.randn(shape, device=goal.device)).clamp(-1, 1)
        held = plans.repeat_interleave(args.hold, dim=2)
        path = predictor.rollout(features[:, None, None], held)[..., 0, :]  # [b k s d]
        cost = (path - goal[:, None, None]).square().sum(dim=-1).amin(dim=-1)
        best = cost.topk(args.elites, largest=False).indices
        elites = plans.take_along_dim(best[..., None, None], dim=1)
        mean, std = elites.mean(dim=1, keepdim=True), elites.std(dim=1, keepdim=True) + 0.05
    return mean[:, 0].repeat_interleave(args.hold, dim=1)[:, : args.replan]


def straight_line(position: Tensor, goal: Tensor, steps: int) -> Tensor:
    """Actions towards the goal, from the true positions; a wall on the way stops them."""
    way = (goal - position) / STRIDE
    longest = way.abs().amax(dim=-1, keepdim=True)
    needed = longest.ceil().clamp(min=1)
    number = torch.arange(steps, device=way.device)[:, None]
    return torch.where(number < needed[:, None], (way / needed)[:, None], 0.0)


def follow(policy: Policy, start: Tensor, goal: Tensor, steps: int, size: int) -> Tensor:
    """The path `[b 1+steps 2]` of a policy; a dot that has reached its goal stays there.

    The policy gives some actions, and is asked again after them, for the dots on their way.
    """
    goal_images, path = render(goal, size), [start]
    while len(path) <= steps:
        left = (~at_goal(path[-1], goal)).nonzero()[:, 0]
        if not len(left):
            path.append(path[-1])
            continue
        for action in policy(path[-1][left], goal[left], goal_images[left]).unbind(1):
            action = torch.zeros_like(start).index_copy(0, left, action)
            path.append(move(path[-1], action.masked_fill(at_goal(path[-1], goal)[:, None], 0)))
    return torch.stack(path[: 1 + steps], dim=1)


def at_goal(position: Tensor, goal: Tensor) -> Tensor:
    return (position - goal).norm(dim=-1) < TOLERANCE


def linear_r2(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, ridge: float = 1e-3) -> float:
    """R2 of a ridge regression on other trajectories, averaged over the columns of y."""
    x, y, x_test, y_test = (each.double().flatten(0, 1) for each in (x, y, x_test, y_test))
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, x_test = x - x_mean, x_test - x_mean
    penalty = ridge * x.square().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(x.T @ x / len(x) + penalty, x.T @ (y - y_mean) / len(x))
    errors = (y_test - y_mean - x_test @ weights).square().sum(dim=0)
    return (1 - errors / (y_test - y_mean).square().sum(dim=0)).mean().item()


# Pictures


def image_decoder(size: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 256),
        nn.GELU(),
        nn.Linear(256, size * size),
        nn.Unflatten(1, (1, size, size)),
    )


def fit_decoder(
    decoder: nn.Module,
    encode: Callable[[Tensor], Tensor],
    positions: Tensor,
    args: argparse.Namespace,
) -> None:
    """Train a probe that draws images of frozen features; it only serves the pictures."""
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    for _ in range(args.decoder_steps):
        batch = positions.flatten(0, 1)[torch.randint(positions.shape[:2].numel(), (256,))]
        loss = F.mse_loss(decoder(encode(batch)), render(batch, args.image_size))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    decoder.requires_grad_(False)


def plot_rollout(truth: Tensor, predicted: Tensor) -> plt.Figure:
    """Two rows for each trajectory: its images, and the decoded predictions from the first one."""
    rows, columns = 2 * len(truth), 1 + predicted.shape[1]
    figure, axes = plt.subplots(rows, columns, figsize=(columns, rows), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for row, (real, guess) in enumerate(zip(truth.cpu(), predicted.cpu(), strict=True)):
        for step in range(columns):
            axes[2 * row, step].imshow(real[step, 0], cmap="gray", vmin=0, vmax=1)
            if step:
                axes[2 * row + 1, step].imshow(guess[step - 1, 0], cmap="gray", vmin=0, vmax=1)
        axes[2 * row + 1, 0].text(0.5, 0.5, "predicted", ha="center", va="center")
        axes[2 * row + 1, 0].set(xlim=(0, 1), ylim=(0, 1))
    for step in range(columns):
        axes[0, step].set_title(f"step {step}", fontsize="small")
    return figure


def plot_paths(paths: dict[str, Tensor], goal: Tensor) -> plt.Figure:
    """A panel for each policy and task: the path and the goal."""
    size = (2.2 * len(goal), 2.3 * len(paths))
    figure, axes = plt.subplots(
        len(paths), len(goal), figsize=size, layout="constrained", squeeze=False
    )
    walls = render(torch.full((2,), -1.0), 128)[0]  # without the dot
    for row, (name, path) in zip(axes, paths.items(), strict=True):
        for ax, way, target in zip(row, path.cpu(), goal.cpu(), strict=True):
            ax.imshow(walls, cmap="gray_r", vmin=0, vmax=1, extent=(0, 1, 1, 0))
            ax.plot(*way.T, color="#0072B2", marker="o", markersize=3, lw=1.2)
            ax.plot(*way[0], color="black", marker="o", markersize=7)
            ax.plot(*target, color="#D55E00", marker="*", markersize=14)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return figure


def save_animation(path: Path, paths: Tensor, goal: Tensor, size: int = 128) -> None:
    """Save the planner's paths side by side, each above the image of its goal."""
    frames = []
    for positions in paths.cpu().unbind(1):
        both = torch.stack([render(positions, size), render(goal.cpu(), size)])  # [2 b 1 h w]
        both = F.pad(both[:, :, 0], (2, 2, 2, 2), value=1)
        pixels = both.movedim(1, 2).flatten(2, 3).flatten(0, 1)  # [2 h, b w]
        frames.append(Image.fromarray((255 * pixels).byte().numpy()))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=250, loop=0)


# The run


def resumed_state(path: Path, keys: Collection[str], args: argparse.Namespace) -> Any:
    """State of the last checkpoint with `--resume`, or None if there is none."""
    if not args.resume:
        return None
    if not path.exists():
        print(f"--resume: there is no {path}, so training begins at step 0")
        return None
    try:
        state = load_checkpoint(path, keys=[*keys, "args"], map_location=args.device)
    except ValueError as error:
        raise SystemExit(f"--resume: {error}; or train anew without --resume") from error
    may_differ = {"resume", "out", "device", "save_every"}
    for name, value in vars(args).items():
        if name not in may_differ and state["args"].get(name) != value:
            raise SystemExit(
                f"--resume: {path} has {name}={state['args'].get(name)}, now it is {value}"
            )
    return state


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=not console.is_terminal,
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, default: Any, help: str) -> None:
        options: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            options = {"action": "store_true"}
        text = help if default is False else f"{help} (default: {default})"
        parser.add_argument(name, default=default, help=text, **options)

    add("--image-size", 32, "side of the images in pixels, a multiple of 8")
    add("--trajectories", 4000, "number of random trajectories")
    add("--frames", 13, "images of a trajectory")
    add("--channels", 32, "channels of the encoder's first convolution")
    add("--width", 16, "width of the features")
    add("--predictor-width", 64, "width of the predictor")
    add("--predictor-depth", 2, "number of predictor blocks")
    add("--heads", 4, "attention heads of the predictor")
    add("--rollout-steps", 4, "steps of the rollout in the loss, 0 for teacher forcing alone")
    add("--sigreg-weight", 0.1, "weight of SIGReg; with 0 the features collapse")
    add("--slices", 64, "random directions of SIGReg")
    add("--steps", 500, "number of training steps")
    add("--batch-size", 64, "trajectories per step")
    add("--lr", 2e-3, "peak learning rate")
    add("--weight-decay", 0.01, "weight decay of matrices")
    add("--tasks", 64, "number of planning tasks")
    add("--max-steps", 30, "steps to reach a goal in")
    add("--plan-steps", 12, "steps of a plan")
    add("--hold", 3, "steps that an action of a plan is held for")
    add("--replan", 4, "steps between plans")
    add("--candidates", 128, "plans in an iteration of the planner")
    add("--elites", 16, "plans that the next iteration is drawn from")
    add("--iterations", 4, "iterations of the planner")
    add("--decoder-steps", 500, "training steps of the decoder of the pictures")
    add("--device", "cuda" if torch.cuda.is_available() else "cpu", "device to train on")
    add("--seed", 0, "random seed")
    add("--save-every", 100, "steps between checkpoints")
    add("--resume", False, "continue from the checkpoint in --out, if there is one")
    add("--out", "world-model-out", "folder for the checkpoint, the numbers and the pictures")
    args = parser.parse_args()
    if args.image_size % 8:
        parser.error(f"--image-size {args.image_size}: must be a multiple of 8")
    if not 1 <= args.hold <= args.plan_steps:
        parser.error(f"--hold {args.hold}: must be from 1 to --plan-steps {args.plan_steps}")
    if not 2 <= args.elites <= args.candidates:
        parser.error(f"--elites {args.elites}: must be from 2 to --candidates {args.candidates}")
    if args.tasks < 4:
        parser.error(f"--tasks {args.tasks}: must be at least 4, of which one is in the same room")
    if args.frames <= max(HORIZON, args.plan_steps):
        parser.error(f"--frames {args.frames}: must be above --plan-steps and {HORIZON}")
    return args


if __name__ == "__main__":
    main()
