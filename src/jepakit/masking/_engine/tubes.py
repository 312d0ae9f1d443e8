"""Sets of an image repeated in every frame of a clip."""

import torch

from jepakit.tokens import TokenSet


def repeat_in_frames(tokens: TokenSet, num_frames: int) -> TokenSet:
    """The set on `(H, W)` in every frame of `(T, H, W)`, with all valid entries before the padding.

    For 2 frames of 4 positions, the set (1, 3, padding) becomes (1, 3, 5, 7, padding, padding): the
    entry e of frame f, with n valid ones in a frame, goes to slot f n + e, and the padding of every
    frame to one extra slot at the end, which is dropped.
    """
    grid_size = (num_frames, *tokens.grid_size)
    frame = torch.arange(num_frames, device=tokens.device)[:, None]
    idx = (frame * tokens.num_positions + tokens.idx[..., None, :]).flatten(-2)
    if not tokens.padded:
        valid = torch.ones_like(idx, dtype=torch.bool)
        return TokenSet._trusted(idx, valid, grid_size, padded=False)
    *batch, length = tokens.shape
    total = num_frames * length
    count = tokens.counts()[..., None, None]
    slot = frame * count + torch.arange(length, device=tokens.device)
    slot = slot.masked_fill(~tokens.valid[..., None, :], total).flatten(-2)
    idx = idx.new_zeros(*batch, total + 1).scatter_(-1, slot, idx)[..., :-1].contiguous()
    valid = torch.arange(total, device=tokens.device) < num_frames * count.squeeze(-1)
    return TokenSet._trusted(idx, valid, grid_size, padded=True)
