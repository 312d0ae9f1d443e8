"""Predictor over time: the features of the next step from those of all steps so far."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import (
    MAX_DEPTH,
    as_bool,
    as_grid_size,
    as_int,
    check_floating,
    check_tensor,
    check_weight_dtype,
)
from jepakit._rows import zero_invalid
from jepakit.nn._positioned import Positioned
from jepakit.nn.blocks import Block, KeysValues, drop_path_rates, init_predictor, run_after

__all__ = ["CausalPredictor"]


class CausalPredictor(nn.Module):
    r"""A narrow transformer that predicts every step's features from the steps before it.

    With features $z_t$ of $n$ tokens, an action $a_t$ and a state $s_t$, the tokens of step $t$
    are $[W_a a_t,\ W_s s_t,\ W_i z_t]$, and

    $$\hat z_{t+1} = W_o\,\mathrm{norm}(\mathrm{blocks}(\text{tokens of the steps } 0 .. t))$$

    restricted to the $n$ features of step $t$. Attention is causal over steps and free within one:
    the action of step $t$ reaches the prediction of step $t + 1$ and later ones. One call predicts
    every step from the true ones before it (teacher forcing); `rollout` feeds predictions back.
    Positions are rotary, in time and space; actions and states turn in time only.

    A step that is not valid is no key and comes out as zeros. It still takes time: the step after
    it keeps its number.

    Args:
        grid_size: Grid of the features of one step, `(L,)` or `(H, W)`; `(1,)` for one vector.
        encoder_dim: Width of the features.
        action_dim: Width of the actions; 0 for none.
        state_dim: Width of the states, such as a robot's pose; 0 for none.
        predictor_embed_dim: Width of the predictor.
        depth: Number of blocks.
        num_heads: Attention heads; must divide `predictor_embed_dim`.
        mlp_ratio: Hidden width of a block's MLP as a multiple of `predictor_embed_dim`.
        drop_path: Probability, below 1, that a residual branch of the last block is dropped in
            training. It rises linearly from 0 at the first block.
        normalize: Layer-normalise predictions, without learned factors, also those that `rollout`
            feeds back: for features that `normalize_targets` gave.

    Raises:
        ValueError: If a head is too narrow for rotary positions. In a call, if shapes do not fit,
            actions or states are missing, or are given although their width is 0.

    Example:
        >>> import torch
        >>> from jepakit.nn import CausalPredictor
        >>> predictor = CausalPredictor(
        ...     (4, 4), 192, action_dim=2, predictor_embed_dim=96, depth=2, num_heads=3)
        >>> features, actions = torch.randn(2, 5, 16, 192), torch.randn(2, 5, 2)
        >>> predictor(features, actions).shape  # entry t predicts step t + 1
        torch.Size([2, 5, 16, 192])
        >>> plans = torch.randn(2, 8, 3, 2)  # 8 candidates of 3 actions from the first step on
        >>> predictor.rollout(features[:, :1], plans).shape
        torch.Size([2, 8, 3, 16, 192])

    Source:
        V-JEPA 2-AC (arXiv:2506.09985), with the initialisation of `MaskedPredictor`. Differences:
        ragged lengths, a key-value cache, states of the future left out unless they are given, the
        standard rotary formula.
    """

    def __init__(
        self,
        grid_size: Sequence[int],
        encoder_dim: int,
        *,
        action_dim: int = 0,
        state_dim: int = 0,
        predictor_embed_dim: int = 384,
        depth: int = 6,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.grid_size = as_grid_size("grid_size", grid_size, num_axes=(1, 2))
        self.encoder_dim = as_int("encoder_dim", encoder_dim, minimum=1)
        self.action_dim = as_int("action_dim", action_dim, minimum=0)
        self.state_dim = as_int("state_dim", state_dim, minimum=0)
        dim = as_int("predictor_embed_dim", predictor_embed_dim, minimum=1)
        depth = as_int("depth", depth, minimum=1, maximum=MAX_DEPTH)
        num_heads = as_int("num_heads", num_heads, minimum=1)
        rates = drop_path_rates(drop_path, depth)
        self.normalize = as_bool("normalize", normalize)
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide predictor_embed_dim={dim}")
        self.embed = nn.Linear(self.encoder_dim, dim)
        # None without actions or states: DDP stops at a parameter that gets no gradient.
        self.embed_action = nn.Linear(self.action_dim, dim) if self.action_dim else None
        self.embed_state = nn.Linear(self.state_dim, dim) if self.state_dim else None
        self.positions = StepPositions(self.grid_size, dim, num_heads)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio=mlp_ratio, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, self.encoder_dim)
        init_predictor(self, self.blocks)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """With `enable`, `forward` computes blocks again in the backward pass."""
        for block in self.blocks:
            cast(Block, block).set_grad_checkpointing(enable)

    def forward(
        self,
        features: Float[Tensor, "b t n d"],
        actions: Float[Tensor, "b t a"] | None = None,
        states: Float[Tensor, "b u s"] | None = None,
        valid: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        """Predictions of the steps 1 to t from the true steps before each, in one pass.

        Args:
            features: Features of the steps 0 to t - 1.
            actions: Action of each step, taken after it. None if `action_dim` is 0.
            states: States of the first u steps, u at most t; the others have no token of a state.
                None if `state_dim` is 0.
            valid: True where a step is present. All if None.
        """
        self._check(features, valid)
        batch, num_steps, num_tokens, _ = features.shape
        _check_vectors("actions", actions, "action_dim", self.embed_action, batch, num_steps)
        _check_vectors(
            "states", states, "state_dim", self.embed_state, batch, num_steps, or_fewer=True
        )
        time = torch.arange(num_steps, device=features.device)[None]
        tokens = self._tokens(features, actions, states, valid, time, num_steps)
        # Only features are predicted: the last block's output at actions and states is not needed.
        first = tokens.x.shape[1] - num_steps * num_tokens
        x, mask = tokens.x, _causal_mask(tokens, valid)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, mask, tokens.rotary)
        x = last(x, mask[:, :, first:], tokens.rotary, first)
        pred = rearrange(self._head(x), "b (t n) d -> b t n d", t=num_steps, n=num_tokens)
        return pred if valid is None else zero_invalid(pred, _per_token(valid, pred))

    def rollout(
        self,
        features: Float[Tensor, "b t n d"],
        actions: Float[Tensor, "b k s a"],
        states: Float[Tensor, "b t c"] | None = None,
        valid: Bool[Tensor, "b t"] | None = None,
        *,
        past_actions: Float[Tensor, "b past a"] | None = None,
        future_states: Float[Tensor, "b k f c"] | None = None,
    ) -> Float[Tensor, "b k s n d"]:
        """Predictions of the next s steps for k candidates of actions, each fed back as true.

        Keys and values are cached: those of the steps before the last once, for all candidates.
        The result is that of `forward` on the steps so far, called s times. Gradients flow.

        States of the future are left out: their steps have no token of a state, as in `forward`
        beyond the states it is given. V-JEPA 2-AC computes them from the actions by the robot's
        kinematics; `future_states` takes such ones.

        Args:
            features: Features of the steps so far, at least one.
            actions: Actions of the last of these steps and of the s - 1 after it, for each
                candidate. Without actions, of width 0: k and s are taken from its shape.
            states: States of the steps so far. None if `state_dim` is 0.
            valid: True where a step is present. The rollout goes on from the last one that is; a
                sample without any comes out as zeros. All if None.
            past_actions: Actions of all steps before the last, `[b, t - 1, a]`: needed if there are
                such steps, unless `action_dim` is 0.
            future_states: States of the first f steps after the last, f at most s - 1.
        """
        self._check(features, valid)
        batch, num_steps, num_tokens, _ = features.shape
        _check_plans("actions", actions, self.embed_action, batch)
        candidates, horizon = actions.shape[1:3]
        if num_steps == 0:
            raise ValueError(f"features {tuple(features.shape)}: must have at least one step")
        if num_steps > 1 or past_actions is not None:
            _check_vectors(
                "past_actions", past_actions, "action_dim", self.embed_action, batch, num_steps - 1
            )
        _check_vectors("states", states, "state_dim", self.embed_state, batch, num_steps)
        num_known = 0
        if future_states is not None:
            _check_plans("future_states", future_states, self.embed_state, batch, candidates)
            num_known = future_states.shape[2]
            if states is None or num_known >= horizon:
                rule = f"must be states of at most {horizon - 1} steps, with states of the past"
                raise ValueError(f"future_states {tuple(future_states.shape)}: {rule}")

        # Each sample goes on from its own last step, which depends on the candidate's action; all
        # steps before it are shared.
        number = torch.arange(num_steps, device=features.device)
        if valid is None:
            last = torch.full((batch,), num_steps - 1, device=features.device)
        else:
            last = (valid * number).amax(dim=1)
        before = None if valid is None else valid[:, :-1] & (number[:-1] < last[:, None])
        num_rows = num_steps + horizon  # of positions in time
        caches, past_mask = self._encode_past(features, past_actions, states, before, num_rows)

        at_last = (torch.arange(batch, device=features.device), last)
        x = repeat(features[at_last], "b n d -> (b k) 1 n d", k=candidates)
        state = None
        if states is not None:
            state = repeat(states[at_last], "b c -> (b k) 1 c", k=candidates)
        present = None
        if valid is not None:
            present = repeat(valid.any(dim=1), "b -> (b k) 1", k=candidates)
        if past_mask is not None:
            past_mask = repeat(past_mask, "b 1 1 n -> (b k) 1 1 n", k=candidates)
        time = repeat(last, "b -> (b k) 1", k=candidates)
        plans = rearrange(actions, "b k s a -> (b k) s a")
        predictions = []
        for step in range(horizon):
            if step > 0:
                state = None
                if future_states is not None and step <= num_known:
                    state = rearrange(future_states[:, :, step - 1], "b k c -> (b k) 1 c")
            action = plans[:, step : step + 1] if self.action_dim else None
            tokens = self._tokens(x, action, state, present, time + step, num_rows)
            x, mask = tokens.x, past_mask
            if past_mask is not None:  # a candidate attends to all of its own steps
                own = sum(part.k.shape[2] for part in caches[0][1:]) + x.shape[1]
                mask = F.pad(past_mask, (0, own))
            for block, cache in zip(self.blocks, caches, strict=True):
                x, new = run_after(cast(Block, block), x, cache, mask, tokens.rotary)
                cache.append(new)
            x = self._head(x[:, -num_tokens:]).unsqueeze(1)
            predictions.append(x)
        pred = rearrange(torch.cat(predictions, dim=1), "(b k) s n d -> b k s n d", k=candidates)
        if valid is None:
            return pred
        return pred.masked_fill(~valid.any(dim=1)[:, None, None, None, None], 0)

    def _encode_past(
        self,
        features: Tensor,
        actions: Tensor | None,
        states: Tensor | None,
        valid: Tensor | None,
        num_rows: int,
    ) -> tuple[list[list[KeysValues]], Tensor | None]:
        """Keys and values of all steps but the last, for each block; their key mask, if ragged."""
        if features.shape[1] == 1:
            return [[] for _ in self.blocks], None
        time = torch.arange(features.shape[1] - 1, device=features.device)[None]
        if states is not None:
            states = states[:, :-1]
        tokens = self._tokens(features[:, :-1], actions, states, valid, time, num_rows)
        x, mask = tokens.x, _causal_mask(tokens, valid)
        caches = []
        for block in self.blocks:
            x, new = run_after(cast(Block, block), x, [], mask, tokens.rotary)
            caches.append([new])
        if valid is None:
            return caches, None
        return caches, _additive(valid[:, tokens.step], x.dtype)[:, None, None]

    def _tokens(
        self,
        features: Tensor,
        actions: Tensor | None,
        states: Tensor | None,
        valid: Tensor | None,
        time: Int[Tensor, "#b t"],
        num_rows: int,
    ) -> "_Tokens":
        """Tokens of the actions of all steps, then of the states, then of the features.

        `time` numbers the steps, below `num_rows`. All inputs are zero where a step is not valid.
        """
        num_steps, num_tokens = features.shape[1:3]
        steps = torch.arange(num_steps, device=features.device)
        if valid is not None:
            features = zero_invalid(features, _per_token(valid, features))
        x = [rearrange(self.embed(features), "b t n d -> b (t n) d")]
        step = [steps.repeat_interleave(num_tokens)]
        place = [torch.arange(num_tokens, device=features.device).repeat(num_steps)]
        for embed, vectors in ((self.embed_state, states), (self.embed_action, actions)):
            if embed is not None and vectors is not None:
                length = vectors.shape[1]
                if valid is not None:
                    vectors = zero_invalid(vectors, valid[:, :length])
                x.insert(0, embed(vectors))
                step.insert(0, steps[:length])
                place.insert(0, torch.zeros_like(steps[:length]))  # which turns in time only
        joined, of_step = torch.cat(x, dim=1), torch.cat(step)
        index = time[:, of_step] * num_tokens + torch.cat(place)
        rotary = F.embedding(index, self.positions.rows(num_rows)).to(joined.dtype)
        return _Tokens(joined, of_step, rotary)

    def _head(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n d"]:
        pred = cast(Tensor, self.proj(self.norm(x)))
        return F.layer_norm(pred, pred.shape[-1:]) if self.normalize else pred

    def _check(self, features: Tensor, valid: Tensor | None) -> None:
        check_floating("features", features)
        shape, num_tokens = tuple(features.shape), math.prod(self.grid_size)
        if len(shape) != 4 or shape[2:] != (num_tokens, self.encoder_dim):
            raise ValueError(
                f"features {shape}: must be [batch, steps, {num_tokens}, {self.encoder_dim}], of "
                f"grid_size={self.grid_size} and encoder_dim={self.encoder_dim}"
            )
        check_weight_dtype("features", features, self.embed)
        if valid is not None:
            check_tensor("valid", valid, torch.bool)
            if valid.shape != features.shape[:2]:
                rule = f"must be [batch, steps] of features, {shape[:2]}"
                raise ValueError(f"valid {tuple(valid.shape)}: {rule}; nothing is broadcast")

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        return f"grid_size={self.grid_size}, normalize={self.normalize}"


class StepPositions(Positioned):
    """Rotary positions of the features of all steps: in time and on the grid of a step."""

    def __init__(self, grid_size: tuple[int, ...], dim: int, num_heads: int) -> None:
        super().__init__()
        # A grid of one position has no axis: all pairs of a head turn in time.
        grid = (1, *grid_size) if math.prod(grid_size) > 1 else (1,)
        self._add_positions(
            "rope", (grid,), dim, num_heads, uniform_power=True, dim_name="predictor_embed_dim"
        )

    def rows(self, num_steps: int) -> Float[Tensor, "N w"]:
        """Cosines and sines of all positions, step by step."""
        return self._position_rows((num_steps, *self.grid_size[1:]))


class _Tokens(NamedTuple):
    x: Float[Tensor, "b n dim"]
    step: Int[Tensor, " n"]  # the step of each token, counted from the first one in `x`
    rotary: Float[Tensor, "#b n head_dim"]


def _causal_mask(tokens: _Tokens, valid: Bool[Tensor, "b t"] | None) -> Float[Tensor, "#b 1 n n"]:
    """Mask that is added to scores: 0 for tokens of valid steps up to the query's own.

    A query has its own step as keys even where that is padding: without any key the softmax would
    be NaN.
    """
    query, key = tokens.step[:, None], tokens.step[None]
    allowed = (query >= key)[None]
    if valid is not None:
        allowed = allowed & (valid[:, tokens.step][:, None] | (query == key))
    return _additive(allowed, tokens.x.dtype)[:, None]


def _additive(allowed: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, -torch.inf)


def _per_token(valid: Bool[Tensor, "b t"], features: Tensor) -> Bool[Tensor, "b t n"]:
    return valid[..., None].expand(features.shape[:-1])


def _check_vectors(
    name: str,
    vectors: Tensor | None,
    argument: str,
    embed: nn.Linear | None,
    batch: int,
    steps: int,
    *,
    or_fewer: bool = False,
) -> None:
    """Raise unless there is a vector that `embed` takes for each step; None if it is None."""
    dim = 0 if embed is None else embed.in_features
    if vectors is None:
        if dim:
            raise ValueError(f"{name}=None: must be given, since {argument}={dim}")
        return
    check_floating(name, vectors)
    shape = tuple(vectors.shape)
    if dim == 0:
        raise ValueError(f"{name} {shape}: must be None, since {argument}=0")
    fits = len(shape) == 3 and (shape[1] == steps or (or_fewer and shape[1] < steps))
    if not fits or shape[0] != batch or shape[2] != dim:
        fewer = "at most " if or_fewer else ""
        raise ValueError(f"{name} {shape}: must be [{batch}, {fewer}{steps}, {dim}]")
    if embed is not None:
        check_weight_dtype(name, vectors, embed)


def _check_plans(
    name: str, plans: Tensor, embed: nn.Linear | None, batch: int, candidates: int | None = None
) -> None:
    """Raise unless there are vectors that `embed` takes for the steps of each candidate."""
    dim = 0 if embed is None else embed.in_features
    check_floating(name, plans)
    shape = tuple(plans.shape)
    fits = len(shape) == 4 and shape[0] == batch and shape[3] == dim
    if not fits or 0 in shape[:3] or candidates not in (None, shape[1]):
        k = "k" if candidates is None else candidates
        raise ValueError(f"{name} {shape}: must be [{batch}, {k}, s, {dim}], with k and s above 0")
    if embed is not None:
        check_weight_dtype(name, plans, embed)
