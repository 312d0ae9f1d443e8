"""`ReferenceMultiBlockMask`: the published I-JEPA sampler, its quirks as switches."""

import math
from bisect import bisect_left
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit._checks import check_choice, check_grid_size, check_int, check_range
from jepakit.masking.context import fit_context
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.reference_sizes import ReferenceSizes
from jepakit.masking.base import UniformSampler
from jepakit.masking.uniforms import copy_to
from jepakit.tokens import Masks, TokenSet

__all__ = ["ReferenceMultiBlockMask"]

# Tries before the published sampler gives up one more target.
_TRIES = 20
_QUIRKS = (
    "prefix_truncation",
    "skip_last",
    "tied_aspect",
    "floor_area",
    "clip_below_grid",
    "square_context",
    "relax_when_stuck",
)


@dataclass(frozen=True)
class ReferenceMultiBlockMask(UniformSampler[Masks]):
    r"""The distribution of the published I-JEPA sampler, each of its quirks a switch.

    For reproducing a published run, and for finding out what each quirk does to one; to train
    something new take `MultiBlockMask`. On a 14x14 grid with the published settings and batches of
    64, the context is 27 % of the grid on average, the top row is context in three samples of
    four, the middle in one of five, and the last row and column are never seen and never predicted.

    A batch shares one target size and one context size. With $u$ uniform, a target has the area
    $a = \lfloor HW (s_0 + u (s_1 - s_0)) \rfloor$ and the aspect ratio
    $\rho = r_0 + u (r_1 - r_0)$, so it is
    $\mathrm{round}\sqrt{a \rho} \times \mathrm{round}\sqrt{a / \rho}$. The context is a block less
    the union of the targets. With every switch False this is, in distribution,
    `MultiBlockMask(context_length="trim")` wherever that one's budget does not bind.

    Args:
        grid_size: `(H, W)` in patches.
        num_targets: Target blocks for each sample.
        target_scale: Range of a target's area as a fraction of the grid.
        target_aspect_ratio: Range of a target's height / width.
        context_scale: Range of the context block's area before targets are removed, as a fraction
            of the grid.
        min_keep: A place of the context is accepted if it keeps more tokens than this after the
            targets are removed. It is no promise for what is left after that.
        prefix_truncation: Cut every context to the batch's smallest by keeping its first tokens in
            raster order. Wrong: the bottom of the image is hardly ever seen, and the context
            shrinks as the batch grows. Off: a random subset of that length.
        skip_last: Draw a block's top from `[0, H - h)` and its left from `[0, W - w)`, without the
            upper end. Wrong: no block ever reaches the last row or column. Off: with it.
        tied_aspect: One random number for a target's scale and aspect ratio, both linear. Wrong: a
            large target is always tall, a small one always wide, and few sizes occur. Off: aspect
            ratio drawn independently, log-uniform.
        floor_area: Round a block's area down to whole patches before its sides are taken. Wrong:
            blocks are a little smaller than asked for. Off: the area is not rounded.
        clip_below_grid: A side that reaches the grid's becomes one less. Wrong: a context of
            0.85 to 1.0 of a square grid is the same block for every draw, so its scale has no
            effect. Off: sides are clipped to the grid, and to at least 1.
        square_context: The context block is square whatever the grid. Wrong: much of a long grid
            is left out. Off: it has the grid's own aspect; on a square grid that is the same, and
            taken as it is, so that every switch can be turned off.
        relax_when_stuck: After 20 places that keep too little, subtract all targets but the last,
            after 20 more all but the last two, and so on. Wrong: the context then holds targets.
            Off: of all places the first that keeps enough, else the one that keeps most, which may
            be nothing.

    Raises:
        InfeasibleMaskError: At construction, if some target or context block would have at most
            `min_keep` patches: the published sampler then tries for ever.
        ValueError: If an argument is out of its range; `TypeError` if it is of another kind.

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
        the code published with it. Differences: nothing loops (the places that could be tried are
        a fixed number of columns of random numbers, of which the first accepted one wins), so what
        would never end raises; and random numbers come from one generator.
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
        check_grid_size("grid_size", self.grid_size, ndims=(2,))
        check_int("num_targets", self.num_targets, minimum=1)
        check_range("target_scale", self.target_scale, high=1.0)
        check_range("target_aspect_ratio", self.target_aspect_ratio)
        check_range("context_scale", self.context_scale, high=1.0)
        check_int("min_keep", self.min_keep, minimum=0)
        for quirk in _QUIRKS:
            check_choice(quirk, getattr(self, quirk), (True, False))
        self._check_ends()

    @property
    def min_context_tokens(self) -> int:
        """Context tokens that a place has to keep to be accepted, `min_keep` + 1."""
        return self.min_keep + 1

    @cached_property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        trim = 0 if self.prefix_truncation else math.prod(self.grid_size)
        return 3 + self.num_targets + self._num_places + trim

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone; they never do."""
        return False

    @property
    def _num_places(self) -> int:
        # With no target subtracted a place is always accepted, so the last needs no second try.
        return self.num_targets * _TRIES + 1

    @cached_property
    def _sizes(self) -> ReferenceSizes:
        return ReferenceSizes(
            self.grid_size,
            self.target_scale,
            self.target_aspect_ratio,
            self.context_scale,
            self.tied_aspect,
            self.floor_area,
            self.clip_below_grid,
            self.square_context,
        )

    def _check_ends(self) -> None:
        for role in ("target", "context"):
            area, h, w = self._sizes.smallest(role)
            if area > self.min_keep:
                continue
            raise InfeasibleMaskError(
                f"ReferenceMultiBlockMask on the grid {self.grid_size}: a {role} block can be "
                f"{h} x {w} = {area} patches, and only blocks of more than "
                f"min_keep={self.min_keep} are accepted, so the published sampler would never end. "
                f"Change one of: {'; '.join(self._changes(role, area))}"
            )

    def _changes(self, role: str, area: int) -> list[str]:
        """Single changes of an argument, each enough for blocks of this role."""

        def enough(sizes: ReferenceSizes) -> bool:
            return sizes.smallest(role)[0] > self.min_keep

        changes = [f"min_keep={area - 1}"] if area > 0 else []
        if self.clip_below_grid and enough(replace(self._sizes, clip_below_grid=False)):
            changes.append("clip_below_grid=False")
        # Blocks grow with their scale, so the scales that will do are an interval.
        percent = bisect_left(range(100), True, key=lambda p: enough(self._sizes.raised(role, p)))
        larger = self._sizes.raised(role, percent)
        if enough(larger):
            changes.append(f"{role}_scale={getattr(larger, f'{role}_scale')}")
        return changes or ["grid_size to a larger one"]

    # Sampling

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        visible, targets, u_trim = self._place_all(uniforms, device)
        if not self.prefix_truncation:
            return Masks(fit_context(visible, self.grid_size, "trim", u_trim), targets)
        rank = visible.cumsum(dim=1)
        length = int(rank[:, -1].min())
        kept = visible & (rank <= length)
        return Masks(TokenSet._of_length(kept, length, self.grid_size), targets)

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        """The masks as they are before a batch gets one length; `audit_masks` compares with them."""
        visible, targets, _ = self._place_all(uniforms, None)
        return Masks(TokenSet.from_mask(visible, self.grid_size), targets)

    def _place_all(
        self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None
    ) -> tuple[Bool[Tensor, "b N"], TokenSet, Float[Tensor, "b u"]]:
        """Whole contexts, targets, and the random numbers left for trimming."""
        h, w = (int(side) for side in self._sizes.targets(uniforms[:1, :2]))
        context_h, context_w = (int(side) for side in self._sizes.contexts(uniforms[:1, 2]))
        widths = [3, self.num_targets, self._num_places]
        _, u_targets, u_context, u_trim = copy_to(uniforms, device).tensor_split(
            list(accumulate(widths)), dim=1
        )
        targets = self._blocks(h, w, u_targets)
        sets = TokenSet._trusted(
            targets, torch.ones_like(targets, dtype=torch.bool), self.grid_size, padded=False
        )
        hidden = sets.to_mask()
        return self._contexts(hidden, self._blocks(context_h, context_w, u_context)), sets, u_trim

    def _blocks(self, h: int, w: int, uniforms: Float[Tensor, "b m"]) -> Int[Tensor, "b m a"]:
        """The cells of blocks of one size, whose corner is drawn."""
        height, width = self.grid_size
        rows, columns = height - h, width - w
        if not self.skip_last:
            rows, columns = rows + 1, columns + 1
        # A block as high as the grid has one place, which an exclusive end would leave out.
        rows, columns = max(1, rows), max(1, columns)
        place = (uniforms * (rows * columns)).long().clamp_max(rows * columns - 1)
        corner = place // columns * width + place % columns
        row, column = (torch.arange(n, device=uniforms.device) for n in (h, w))
        return corner[:, :, None] + (row[:, None] * width + column).flatten()

    def _contexts(
        self, hidden: Bool[Tensor, "b m N"], places: Int[Tensor, "b t a"]
    ) -> Bool[Tensor, "b N"]:
        """For each sample the first place that keeps enough, less what is hidden."""
        visible = hidden.new_zeros(hidden.shape[0], hidden.shape[2])
        accepted, most = visible[:, 0], torch.full_like(visible[:, 0], -1, dtype=torch.int64)
        for given_up, tries in enumerate(torch.split(places, _TRIES, dim=1)):
            subtracted = self.num_targets - (given_up if self.relax_when_stuck else 0)
            free = ~hidden[:, :subtracted].any(dim=1)
            kept = free.gather(1, tries.flatten(1)).view(tries.shape).sum(dim=2)
            enough = kept > self.min_keep
            found = enough.any(dim=1)
            best = torch.where(found, enough.int().argmax(dim=1), kept.argmax(dim=1))[:, None]
            count = kept.gather(1, best).squeeze(1)
            # Until a place is accepted, the one that keeps most stands in for it.
            taken = ~accepted & (found | (count > most))
            cells = tries.gather(1, best[:, :, None].expand(-1, -1, tries.shape[2])).squeeze(1)
            block = torch.zeros_like(visible).scatter_(1, cells, True)
            visible = torch.where(taken[:, None], block & free, visible)
            most = torch.where(taken, count, most)
            accepted = accepted | found
            if accepted.all():
                break
        return visible
