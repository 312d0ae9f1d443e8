"""`ReferenceMultiBlockMask`: the published I-JEPA sampler, with its quirks as switches."""

import math
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit._checks import as_bool, as_grid_size, as_int, as_range, store_fields
from jepakit.masking._engine.context_length import first_of_order
from jepakit.masking._engine.random_numbers import random_order
from jepakit.masking.base import InfeasibleMaskError, UniformSampler
from jepakit.tokens import Masks, TokenSet

__all__ = ["ReferenceMultiBlockMask"]

# Places that the published sampler tries before it gives up one more target.
_TRIES = 20
Role = Literal["target", "context"]


class _Sizes(NamedTuple):
    height: Int[Tensor, " k"]
    width: Int[Tensor, " k"]


@dataclass(frozen=True)
class ReferenceMultiBlockMask(UniformSampler[Masks]):
    r"""The distribution of the published I-JEPA sampler, each of its quirks a switch.

    For reproducing a published run, and for ablations of its quirks; to train something new use
    `MultiBlockMask`. On a 14x14 grid with the published settings and batches of 64, the context is
    27 % of the grid on average, the top row is context in three samples of four, the middle in one
    of five, and the last row and column are never context and never target. A context is cut to the
    smallest of its batch, so contexts differ with the number of ranks that share a batch.

    A batch shares one target size and one context size. With $u$ uniform, a target has the area
    $a = \lfloor HW (s_0 + u (s_1 - s_0)) \rfloor$ and the aspect ratio
    $\rho = r_0 + u (r_1 - r_0)$, so it is
    $\mathrm{round}\sqrt{a \rho} \times \mathrm{round}\sqrt{a / \rho}$. The context is a block less
    the union of the targets. With every switch False this is, in distribution,
    `MultiBlockMask(context_length="trim", context_subset="random")` where the budget of that
    sampler does not bind.

    Args:
        grid_size: `(H, W)` in patches.
        num_targets: Target blocks for each sample.
        target_scale: Range of a target's area as a fraction of the grid.
        target_aspect_ratio: Range of a target's height / width.
        context_scale: Range of the context block's area before targets are removed, as a fraction
            of the grid.
        min_keep: A place of the context is accepted if more tokens than this are left after the
            targets are removed. It promises nothing for the context after truncation.
        prefix_truncation: Cut every context to the batch's smallest by keeping its first tokens in
            raster order. Effect: the bottom of the image is hardly ever context, and the context
            shrinks as the batch grows. Off: a random subset of that length.
        skip_last: Draw a block's top from `[0, H - h)` and its left from `[0, W - w)`, without the
            upper end. Effect: no block reaches the last row or column. Off: with it.
        tied_aspect: One random number for a target's scale and aspect ratio, both linear. Effect:
            a large target is always tall, a small one always wide, and few sizes occur. Off: aspect
            ratio drawn independently, log-uniform.
        floor_area: Round a block's area down to whole patches before its sides are computed.
            Effect: blocks are a little below their scale. Off: the area is not rounded.
        clip_below_grid: A side that reaches the grid's becomes one less. Effect: a context of
            0.85 to 1.0 of a square grid is the same block for every draw, so its scale has no
            effect. Off: sides are clipped to the grid, and to at least 1.
        square_context: The context block is square whatever the grid. Effect: much of a long grid
            is left out. Off: it has the grid's own aspect, which is the same on a square grid.
        relax_when_stuck: After 20 places that keep too little, subtract all targets but the last,
            after 20 more all but the last two, and so on. Effect: the context then holds target
            patches. Off: of all places the first that keeps enough, else the one that keeps most,
            which may be nothing.

    Raises:
        InfeasibleMaskError: If some target or context block would have at most `min_keep` patches:
            the published sampler then never ends.

    Example:
        >>> import torch
        >>> from jepakit.masking import ReferenceMultiBlockMask
        >>> sampler = ReferenceMultiBlockMask((14, 14))
        >>> masks = sampler(64, generator=torch.Generator().manual_seed(0))
        >>> seen = masks.context.to_mask().view(64, 14, 14).float().mean(dim=0)
        >>> float(seen[-1].max()), float(seen[:, -1].max())
        (0.0, 0.0)

    Source:
        Assran et al., I-JEPA (arXiv:2301.08243), section 3 and appendix A.1, and the behaviour of
        the code published with it. Differences: no loop (the places to try are a fixed number of
        columns of random numbers, of which the first accepted one counts), so what would never end
        raises; and random numbers come from one generator.
    """

    grid_size: tuple[int, int]
    _: KW_ONLY
    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect_ratio: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_keep: int = 10
    prefix_truncation: bool = True
    skip_last: bool = True
    tied_aspect: bool = True
    floor_area: bool = True
    clip_below_grid: bool = True
    square_context: bool = True
    relax_when_stuck: bool = True

    def __post_init__(self) -> None:
        store_fields(
            self,
            grid_size=as_grid_size("grid_size", self.grid_size, num_axes=(2,)),
            num_targets=as_int("num_targets", self.num_targets, minimum=1),
            target_scale=as_range("target_scale", self.target_scale, high=1.0),
            target_aspect_ratio=as_range("target_aspect_ratio", self.target_aspect_ratio),
            context_scale=as_range("context_scale", self.context_scale, high=1.0),
            min_keep=as_int("min_keep", self.min_keep, minimum=0),
            **{
                f.name: as_bool(f.name, getattr(self, f.name))
                for f in fields(self)
                if f.type is bool
            },
        )
        self._check_feasible("target")
        self._check_feasible("context")

    @property
    def min_context_tokens(self) -> int:
        """Context tokens that a place must keep to be accepted, `min_keep` + 1."""
        return self.min_keep + 1

    @cached_property
    def _columns(self) -> list[int]:
        return [
            2,  # scale and aspect ratio of the targets
            1,  # scale of the context
            self.num_targets,  # places of the targets
            # Places of the context to try; after all targets are given up any is accepted.
            self.num_targets * _TRIES + 1,
            0 if self.prefix_truncation else math.prod(self.grid_size),  # trimming
        ]

    @property
    def per_sample(self) -> bool:
        """False, since sizes and the context's length are those of the batch."""
        return False

    @property
    def _shared_columns(self) -> list[int]:
        target_size, context_size, *_ = self._columns
        return list(range(target_size + context_size))

    # Sizes

    def _target_sizes(self, uniforms: Float[Tensor, "k 2"]) -> _Sizes:
        u_scale, u_aspect = uniforms.double().unbind(1)
        area = self._areas(self.target_scale, u_scale)
        low, high = self.target_aspect_ratio
        linear, log_uniform = low + (high - low) * u_scale, low * (high / low) ** u_aspect
        aspect = linear if self.tied_aspect else log_uniform
        return self._clipped((area * aspect).sqrt(), (area / aspect).sqrt())

    def _context_sizes(self, uniforms: Float[Tensor, " k"]) -> _Sizes:
        """Sizes of context blocks before targets are removed."""
        area = self._areas(self.context_scale, uniforms.double())
        height, width = self.grid_size
        aspect = 1.0 if self.square_context else height / width
        return self._clipped((area * aspect).sqrt(), (area / aspect).sqrt())

    def _areas(self, scale: tuple[float, float], u: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        area = math.prod(self.grid_size) * (scale[0] + (scale[1] - scale[0]) * u)
        return area.floor() if self.floor_area else area

    def _clipped(self, h: Float[Tensor, " k"], w: Float[Tensor, " k"]) -> _Sizes:
        height, width = self.grid_size
        rows, columns = h.round().long(), w.round().long()
        if self.clip_below_grid:
            return _Sizes(rows.clamp_max(height - 1), columns.clamp_max(width - 1))
        return _Sizes(rows.clamp(1, height), columns.clamp(1, width))

    # Feasibility

    def _check_feasible(self, role: Role) -> None:
        h, w = self._smallest_block(role)
        if h * w > self.min_keep:
            return
        larger = f"{role}_scale or grid_size to a larger one"
        change = f"min_keep to at most {h * w - 1}, or {larger}" if h * w > 0 else larger
        raise InfeasibleMaskError(
            f"ReferenceMultiBlockMask on the grid {self.grid_size}: a {role} block can be "
            f"{h} x {w} = {h * w} patches, and only blocks of more than min_keep={self.min_keep} "
            "are accepted, so the published sampler would never end. "
            f"Change {change}"
        )

    def _smallest_block(self, role: Role) -> tuple[int, int]:
        """Height and width of the smallest block among 2^16 draws.

        A smaller one that is rarer than that does no harm: no loop waits for a larger one.
        """
        line = torch.arange(2**16, dtype=torch.float32, device="cpu") / 2**16
        if role == "context":
            h, w = self._context_sizes(line)
        elif self.tied_aspect:
            h, w = self._target_sizes(line[:, None].expand(-1, 2))
        else:
            side = torch.linspace(0, 1, 2**8, dtype=torch.float32, device="cpu")
            h, w = self._target_sizes(torch.cartesian_prod(side, side))
        smallest = int((h * w).argmin())
        return int(h[smallest]), int(w[smallest])

    # Sampling

    def _draw(self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None) -> Masks:
        if valid is not None:
            raise ValueError(
                "valid: must be None; the published sampler draws on the whole grid; use "
                "MultiBlockMask"
            )
        visible, targets, u_trim = self._place_all(uniforms)
        if not self.prefix_truncation:
            length = int(visible.sum(dim=1).min())
            kept = random_order(u_trim, visible)
            return Masks(first_of_order(kept, length, self.grid_size), targets)
        rank = visible.cumsum(dim=1)
        length = int(rank[:, -1].min())
        kept = visible & (rank <= length)
        return Masks(TokenSet._of_length(kept, length, self.grid_size), targets)

    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        """Nothing to check: `_draw` refuses `valid`."""

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        visible, targets, _ = self._place_all(uniforms)
        return Masks(TokenSet.from_mask(visible, self.grid_size), targets)

    def _place_all(
        self, uniforms: Float[Tensor, "b k"]
    ) -> tuple[Bool[Tensor, "b N"], TokenSet, Float[Tensor, "b u"]]:
        """Contexts before they get one length, targets, and the random numbers for trimming."""
        # The first sample's numbers give the sizes of the batch.
        target_h, target_w = map(int, self._target_sizes(uniforms[:1, :2]))
        context_h, context_w = map(int, self._context_sizes(uniforms[:1, 2]))
        _, _, u_targets, u_tries, u_trim = torch.split(uniforms, self._columns, dim=1)
        cells = self._draw_blocks(target_h, target_w, u_targets)
        valid = torch.ones_like(cells, dtype=torch.bool)
        targets = TokenSet._trusted(cells, valid, self.grid_size, padded=False)
        tries = self._draw_blocks(context_h, context_w, u_tries)
        return self._accept_contexts(tries, targets.to_mask()), targets, u_trim

    def _draw_blocks(self, h: int, w: int, uniforms: Float[Tensor, "b m"]) -> Int[Tensor, "b m a"]:
        """The cells of blocks of one size, whose corners are drawn."""
        height, width = self.grid_size
        last = 0 if self.skip_last else 1
        # A block as high as the grid has one place, which an exclusive upper end leaves out.
        rows, columns = max(1, height - h + last), max(1, width - w + last)
        place = (uniforms * (rows * columns)).long().clamp_max(rows * columns - 1)
        corner = place // columns * width + place % columns
        row, column = (torch.arange(n, device=uniforms.device) for n in (h, w))
        return corner[:, :, None] + (row[:, None] * width + column).flatten()

    def _accept_contexts(
        self, tries: Int[Tensor, "b t a"], targets: Bool[Tensor, "b m N"]
    ) -> Bool[Tensor, "b N"]:
        """The first block of each sample that keeps enough cells, less the subtracted targets.

        Blocks come in rounds of `_TRIES`. With `relax_when_stuck` round r subtracts r targets less,
        so that the last round, of one block, subtracts none.
        """
        visible = targets.new_zeros(targets.shape[0], targets.shape[2])
        accepted, most = visible[:, 0], torch.full_like(visible[:, 0], -1, dtype=torch.int64)
        for given_up, blocks in enumerate(torch.split(tries, _TRIES, dim=1)):
            num_subtracted = self.num_targets - (given_up if self.relax_when_stuck else 0)
            free = ~targets[:, :num_subtracted].any(dim=1)
            kept = free.gather(1, blocks.flatten(1)).view(blocks.shape).sum(dim=2)
            enough = kept > self.min_keep
            any_enough = enough.any(dim=1)
            # The first that keeps enough, or the one that keeps most.
            best = torch.where(any_enough, enough.int().argmax(dim=1), kept.argmax(dim=1))[:, None]
            count = kept.gather(1, best).squeeze(1)
            # Until a block is accepted, the best so far is kept in its place.
            taken = ~accepted & (any_enough | (count > most))
            cells = blocks.gather(1, best[:, :, None].expand(-1, -1, blocks.shape[2])).squeeze(1)
            block = torch.zeros_like(visible).scatter_(1, cells, True)
            visible = torch.where(taken[:, None], block & free, visible)
            most = torch.where(taken, count, most)
            accepted = accepted | any_enough
            if accepted.all():
                break
        return visible
