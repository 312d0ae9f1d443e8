"""
A world model
=============

At the end of this page you have trained an encoder and a predictor of the next step together,
from images and actions alone, and let the model imagine several steps ahead and choose actions
that lead to a goal.
"""

# %%
# A world of one dot
# ------------------
#
# A dot moves in a square, by actions of two numbers. Trajectories are random walks; the model
# sees images and actions, never the position.

import matplotlib.pyplot as plt
import torch
from torch import nn

import jepakit
from jepakit.losses import masked_mse, next_step_loss, sigreg
from jepakit.nn import CausalPredictor

SIDE, STRIDE, FRAMES = 16, 0.15, 9


def render(position):
    """Images `[*batch 1 16 16]` of positions `[*batch 2]` in the unit square."""
    centre = (torch.arange(SIDE) + 0.5) / SIDE
    x, y = position[..., None, None, 0], position[..., None, None, 1]
    squares = (centre - x).square() + (centre[:, None] - y).square()
    return torch.exp(-squares / (2 * 0.06**2)).unsqueeze(-3)


def walks(count, seed):
    """Positions `[count t 2]` and the actions `[count t-1 2]` between them."""
    generator = torch.Generator().manual_seed(seed)
    positions = [0.1 + 0.8 * torch.rand(count, 2, generator=generator)]
    actions = 2 * torch.rand(count, FRAMES - 1, 2, generator=generator) - 1
    for action in actions.unbind(1):
        positions.append((positions[-1] + STRIDE * action).clamp(0.1, 0.9))
    return torch.stack(positions, dim=1), actions


positions, actions = walks(2000, seed=0)
test_positions, test_actions = walks(300, seed=1)
figure, panels = plt.subplots(1, FRAMES, figsize=(9, 1.3), layout="constrained")
for panel, image in zip(panels, render(positions[0]), strict=True):
    panel.imshow(image[0], cmap="gray")
    panel.set(xticks=[], yticks=[])

# %%
# One trajectory, from left to right.
#
# Two parts, one loss
# -------------------
#
# The encoder gives one vector for each image. :class:`~jepakit.nn.CausalPredictor` predicts the
# next vector from those so far and the action. There is no teacher, so something else has to keep
# the vectors from becoming constant: :func:`~jepakit.losses.sigreg` compares the features of each
# step with a normal distribution (as in LeWorldModel).

STEPS, WIDTH = 300, 32


def train(sigreg_weight):
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=4), nn.GELU(), nn.Flatten(),
        nn.Linear(16 * (SIDE // 4) ** 2, 128), nn.GELU(), nn.Linear(128, WIDTH),
    )  # fmt: skip
    predictor = CausalPredictor(
        (1,), WIDTH, action_dim=2, predictor_embed_dim=64, depth=2, num_heads=4
    )
    parameters = [*encoder.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    lr = jepakit.warmup_cosine(2e-3, 2e-5, warmup_steps=STEPS // 10, steps=STEPS)
    for step in range(STEPS):
        index = torch.randint(len(positions), (64,))
        images = render(positions[index])
        features = encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # [b t d]
        prediction, _ = next_step_loss(
            predictor, features[:, :, None], actions[index], rollout_steps=2, loss=masked_mse
        )
        gaussian = torch.stack([sigreg(each, num_slices=64) for each in features.unbind(1)]).mean()
        loss = prediction + sigreg_weight * gaussian
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return encoder.eval(), predictor.eval()


models = {"without SIGReg": train(0.0), "with SIGReg": train(0.1)}

# %%
# Do the features hold the position?
# ----------------------------------
#
# The position is read off the features by a linear regression, fitted on training images and
# tested on others. An R2 of 1 is exact, 0 is no better than the mean position.


@torch.no_grad()
def position_r2(encoder):
    def design(where):
        features = encoder(render(where.flatten(0, 1)))
        return torch.cat([features, torch.ones(len(features), 1)], dim=1).double()

    known, asked = design(positions[:500]), design(test_positions)
    ridge = 1e-6 * torch.eye(known.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(
        known.T @ known + ridge, known.T @ positions[:500].flatten(0, 1).double()
    )
    truth = test_positions.flatten(0, 1).double()
    errors = (asked @ weights - truth).square().sum()
    return 1 - (errors / (truth - truth.mean(dim=0)).square().sum()).item()


print(f"{'':16}{'position R2':>12}{'std':>8}{'rank':>7}")
for name, (encoder, _) in models.items():
    with torch.no_grad():
        features = encoder(render(test_positions[:, 0]))
    spread, rank = features.std(dim=0).mean(), jepakit.effective_rank(features)
    print(f"{name:16}{position_r2(encoder):12.3f}{spread:8.4f}{rank:7.1f}")

# %%
# Without SIGReg the features have shrunk, which makes them easy to predict, and the position is
# read off them less exactly. (The rank alone would not show it: it does not depend on scale.)
#
# Imagined futures
# ----------------
#
# ``rollout`` feeds predictions back: from one image and eight actions, the features of the next
# eight steps. Its error is compared with the guess that nothing changes, in units of the variance
# of the features (1 is the error of the mean).

encoder, predictor = models["with SIGReg"]
with torch.no_grad():
    truth = encoder(render(test_positions).flatten(0, 1)).unflatten(0, test_positions.shape[:2])
    imagined = predictor.rollout(truth[:, :1, None], test_actions[:, None])[:, 0, :, 0]
scale = truth.var(dim=(0, 1)).sum()
guesses = {"model": imagined, "nothing changes": truth[:, :1].expand_as(imagined)}
errors = {
    name: (guess - truth[:, 1:]).square().sum(dim=-1).mean(dim=0) / scale
    for name, guess in guesses.items()
}
print(f"{'steps ahead':16}" + "".join(f"{step:6}" for step in range(1, FRAMES)))
for name, values in errors.items():
    print(f"{name:16}" + "".join(f"{value:6.2f}" for value in values))

# %%
# Planning
# --------
#
# Given an image of the goal, draw 300 plans of three actions, roll all of them out in one call,
# take the first action of the plan that ends closest to the goal's features, and look again.


@torch.no_grad()
def walk_to(goal, start, choose, steps=8):
    path = [start]
    for _ in range(steps):
        action = choose(path[-1], goal)
        path.append((path[-1] + STRIDE * action).clamp(0.1, 0.9))
    return torch.stack(path, dim=1)


def planned(position, goal):
    features, wanted = encoder(render(position)), encoder(render(goal))
    plans = 2 * torch.rand(len(position), 300, 3, 2) - 1
    ends = predictor.rollout(features[:, None, None], plans)[:, :, -1, 0]  # [b 300 d]
    best = (ends - wanted[:, None]).square().sum(dim=-1).argmin(dim=1)
    return plans[torch.arange(len(position)), best, 0]


torch.manual_seed(0)
start, goal = test_positions[:40, 0], test_positions[100:140, 0]
choices = {"planner": planned, "random": lambda position, _: 2 * torch.rand_like(position) - 1}
paths = {name: walk_to(goal, start, choose) for name, choose in choices.items()}
print(f"mean distance to the goal: {(start - goal).norm(dim=-1).mean():.2f} at the start")
for name, path in paths.items():
    print(f"    {name}: {(path[:, -1] - goal).norm(dim=-1).mean():.2f} after 8 steps")

# %%
# Paths to four goals (crosses) from the same starts (circles): planned in blue, random in orange.

figure, panels = plt.subplots(1, 4, figsize=(9, 2.4), layout="constrained")
for number, panel in enumerate(panels):
    for name, colour in (("random", "#E69F00"), ("planner", "#0072B2")):
        panel.plot(*paths[name][number].T, ".-", color=colour, label=name)
    panel.plot(*start[number], "o", color="black", mfc="white", ms=8)
    panel.plot(*goal[number], "x", color="black", ms=9, mew=2)
    panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
_ = panels[0].legend(fontsize="small")

# %%
# Next
# ----
#
# ``examples/world_model.py`` adds walls, a better planner and pictures decoded from the features;
# a predictor on a frozen encoder, as in V-JEPA 2-AC, is on :doc:`/parts/sequences`.
