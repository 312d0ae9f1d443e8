"""`TokenViT`: a vision transformer over the tokens of clips, images, spectrograms or series."""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import (
    MAX_DEPTH,
    as_bool,
    as_choice,
    as_grid_size,
    as_int,
    as_ints,
    as_layers,
    check_floating,
    check_images_finite,
    check_weight_dtype,
    type_name,
    value_checks_on,
)
from jepakit._wrapped import clean_names, unwrap
from jepakit.nn._padding import additive_key_mask, zero_padding
from jepakit.nn._positioned import Positioned
from jepakit.nn.blocks import Block, drop_path_rates, init_linear
from jepakit.nn.embeddings import PatchEmbedding, Tubelets, check_channels, grid_of
from jepakit.tokens import TokenSet, mean_tokens, take_tokens
from jepakit.tokens._arguments import check_context

__all__ = ["TokenViT"]


class TokenViT(Positioned):
    r"""A vision transformer over tokens on a grid of one to three axes.

    With embeddings $z_p$ (positions added, unless they are rotary), registers $r$ and a context
    $S$, $f(x, S) = \mathrm{norm}(\mathrm{blocks}(r, (z_p)_{p \in S}))$ without the registers. It is
    called as `MaskedViT` is: hidden tokens are dropped before the embedding, so they cost nothing
    and cannot leak, and padding is no key and comes out as zeros. A class token is a register that
    is returned; there is none.

    Fixed positions (all but `"learned"`) count tokens from the first one of each axis, so one
    encoder takes clips of any length and size that the embedding divides. Nothing is interpolated.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in tokens. With fixed positions, inputs on other
            grids with as many axes are taken too.
        embed_dim: Width of the features.
        depth: Number of blocks.
        num_heads: Attention heads; must divide `embed_dim`.
        embed: `Tubelets`, `Patches`, `Frames`, or any module from inputs to embeddings `[b N d]` of
            all positions of the grid, row-major. If it has `grid_size_of(input_size)`, inputs of
            several sizes are possible.
        mlp_ratio: Hidden width of a block's MLP as a multiple of `embed_dim`.
        drop_path: Probability, below 1, that a residual branch of the last block is dropped in
            training. It rises linearly from 0 at the first block.
        layer_scale: Initial value of learned factors of the residual branches; None for none.
        position: `"rope"` rotates queries and keys, `"sincos"` adds a fixed table, `"learned"` a
            learned one of `grid_size` alone; `"rope-vjepa2"` rotates as the published V-JEPA 2
            does, on three axes.
        uniform_power: Whether all axes have the same share of the features of `"sincos"`. False
            gives the first of three axes half of them and the others a quarter each.
        num_registers: Learned tokens that all others attend to and that are not returned.
        repeat_registers: On three axes, let attention count each register once for every step of
            time, as if it were repeated: $\log T$ is added to its scores. A still clip then has
            the features of one frame.

    Raises:
        ValueError: If `position` does not fit the width and the number of axes. In a call, if the
            embedding does not divide the inputs, or there are no positions for their grid.

    Example:
        >>> import torch
        >>> from jepakit import RandomMask
        >>> from jepakit.nn import TokenViT, Tubelets
        >>> embed = Tubelets((2, 16, 16), 96)
        >>> encoder = TokenViT((4, 4, 4), 96, depth=2, num_heads=3, embed=embed)
        >>> masks = RandomMask(encoder.grid_size, target_ratio=0.75)(2)
        >>> encoder(torch.randn(2, 3, 8, 64, 64), masks.context).shape
        torch.Size([2, 16, 96])
        >>> encoder(torch.randn(2, 3, 16, 64, 96)).shape  # longer and wider
        torch.Size([2, 192, 96])

    Source:
        The encoder of V-JEPA (arXiv:2404.08471) and V-JEPA 2 (arXiv:2506.09985), with timm's
        initialisation: truncated normal with a std of 0.02. Differences: any grid, ragged contexts,
        registers (arXiv:2309.16588), the standard rotary formula by default; the published codes
        divide residual projections of block l by sqrt(2 l) at the start.
    """

    def __init__(
        self,
        grid_size: Sequence[int],
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        embed: nn.Module,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        position: Literal["rope", "rope-vjepa2", "sincos", "learned"] = "rope",
        uniform_power: bool = True,
        num_registers: int = 0,
        repeat_registers: bool = False,
    ) -> None:
        super().__init__()
        grid = as_grid_size("grid_size", grid_size)
        self.embed_dim = as_int("embed_dim", embed_dim, minimum=1)
        depth = as_int("depth", depth, minimum=1, maximum=MAX_DEPTH)
        num_heads = as_int("num_heads", num_heads, minimum=1)
        self.num_registers = as_int("num_registers", num_registers, minimum=0)
        self.repeat_registers = as_bool("repeat_registers", repeat_registers)
        rates = drop_path_rates(drop_path, depth)
        if self.embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide embed_dim={self.embed_dim}")
        if self.repeat_registers and (self.num_registers == 0 or len(grid) != 3):
            raise ValueError(
                f"repeat_registers=True: must come with registers and a grid of 3 axes, got "
                f"num_registers={self.num_registers} and grid_size={grid}"
            )
        self._check_embed(embed, grid)

        self.embed = embed
        # None without registers: DDP stops at a parameter that gets no gradient.
        self.registers = (
            nn.Parameter(torch.empty(self.num_registers, self.embed_dim))
            if self.num_registers
            else None
        )
        self._add_positions(
            position,
            (grid,),
            self.embed_dim,
            num_heads,
            uniform_power=uniform_power,
            dim_name="embed_dim",
        )
        self.blocks = nn.ModuleList(
            Block(
                self.embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                layer_scale=layer_scale,
                rotary_pairs=self._rotary_pairs,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        self._initialise()

    def _check_embed(self, embed: nn.Module, grid: tuple[int, ...]) -> None:
        if not isinstance(embed, nn.Module):
            kind = type_name(embed)
            raise TypeError(
                f"embed: must be a module, such as Tubelets((2, 16, 16), 384), got {kind}"
            )
        inner = unwrap(embed)
        width = getattr(inner, "embed_dim", self.embed_dim)
        if width != self.embed_dim:
            raise ValueError(f"embed has embed_dim={width}: must be embed_dim={self.embed_dim}")
        if isinstance(inner, PatchEmbedding) and len(inner.patch_size) != len(grid):
            raise ValueError(
                f"embed={type(inner).__name__}: must have the {len(grid)} axes of grid_size={grid}"
            )

    def _initialise(self) -> None:
        # As timm, which leaves the embedding as torch initialises a convolution.
        init_linear(self.blocks)
        if self.registers is not None:
            nn.init.normal_(self.registers, std=1e-6)
        if self.position == "learned":
            nn.init.trunc_normal_(self.position_table, std=0.02)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of registers in front of the tokens of the grid."""
        return self.num_registers

    def grid_size_of(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Grid of the features of inputs of a size.

        Args:
            input_size: Frames, pixels or samples along each axis, without batch and channels.

        Raises:
            ValueError: If `forward` would refuse inputs of this size.
        """
        return self._grid_of(as_ints("input_size", input_size, minimum=1))

    def _grid_of(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        embed: Any = unwrap(self.embed)
        if isinstance(embed, PatchEmbedding):
            grid = grid_of(embed, sides)
        elif hasattr(embed, "grid_size_of"):
            grid = tuple(embed.grid_size_of(sides))
        else:
            return self.grid_size  # the only one that is known
        if self.position == "learned" and grid != self.grid_size:
            raise ValueError(
                f"inputs of size {sides} have the grid {grid}: must have the grid "
                f"{self.grid_size} of the learned positions; for any grid, build the encoder with "
                "position='rope' or 'sincos'"
            )
        return grid

    def forward(
        self, inputs: Float[Tensor, "b c *sides"], context: TokenSet | None = None
    ) -> Float[Tensor, "b n d"]:
        """Features of `inputs` after the final norm, of all tokens or of the `context`.

        Args:
            inputs: Clips `[b c t h w]`, images `[b c h w]` or series `[b c length]`.
            context: Visible tokens; None for all.
        """
        x, key_mask, rotary = self._sequence(inputs, context)
        for block in self.blocks:
            x = block(x, key_mask, rotary)
        return zero_padding(self.norm(x[:, self.num_registers :]), context)

    def forward_intermediates(
        self,
        inputs: Float[Tensor, "b c *sides"],
        layers: Sequence[int],
        context: TokenSet | None = None,
        *,
        norm: bool = False,
    ) -> list[Float[Tensor, "b n d"]]:
        """Features after chosen blocks.

        Args:
            inputs: As in `forward`.
            layers: Numbers of blocks from 0, ascending; negative ones count from the end.
            context: Visible tokens; None for all.
            norm: Apply the final norm to each, so that layer -1 equals `forward`.
        """
        as_bool("norm", norm)
        numbers = as_layers("layers", layers, len(self.blocks))
        x, key_mask, rotary = self._sequence(inputs, context)
        outputs = []
        for number, block in enumerate(self.blocks[: numbers[-1] + 1]):
            x = block(x, key_mask, rotary)
            if number in numbers:
                features = x[:, self.num_registers :]
                outputs.append(zero_padding(self.norm(features) if norm else features, context))
        return outputs

    def extract_features(
        self,
        inputs: Float[Tensor, "b c *sides"],
        context: TokenSet | None = None,
        pool: Literal["mean"] | None = "mean",
    ) -> Float[Tensor, "b ..."]:
        """Pooled features for probes and retrieval.

        Args:
            inputs: As in `forward`.
            context: Tokens to see and to pool over; None for all. A sample without any is zero.
            pool: `"mean"` over tokens; None returns the features `[b n d]` as `forward` does.
        """
        as_choice("pool", pool, ("mean", None))
        features = cast(Tensor, self(inputs, context))
        if pool is None:
            return features
        return features.mean(dim=1) if context is None else mean_tokens(features, context)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """With `enable`, compute blocks again in the backward pass and keep no activations."""
        for block in self.blocks:
            cast(Block, block).set_grad_checkpointing(enable)

    @classmethod
    def inflate(
        cls, timm_vit: nn.Module, tubelet_size: int = 2, num_frames: int = 16
    ) -> "TokenViT":
        r"""Encoder for clips with a copy of the weights of an image model.

        The kernel of a patch is divided by the length of a tubelet and repeated along it, and every
        step of time has the positions of the image. So a still clip has the features of its frame
        at every step. Positions are learned: training can make the steps differ.

        A class token and registers become registers. Attention would count them once against T
        copies of each patch, so they get `repeat_registers=True`, which adds $\log T$ to their
        scores, as if they were repeated.

        Args:
            timm_vit: A plain `VisionTransformer` of timm's, built with `num_classes=0`.
            tubelet_size: Frames of a tubelet.
            num_frames: Length of the clips, a multiple of `tubelet_size`.

        Raises:
            UnsupportedBackboneError: If the model has something that cannot be carried over, such
                as rotary or relative positions, norms of queries and keys, a convolutional stem or
                another head; the text names it.

        Example:
            >>> import timm, torch
            >>> from jepakit.nn import TokenViT
            >>> vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=2)
            >>> encoder = TokenViT.inflate(vit.eval(), num_frames=8)
            >>> image = torch.randn(1, 3, 64, 64)
            >>> still = image[:, :, None].expand(-1, -1, 8, -1, -1)
            >>> features = encoder(still).view(1, 4, 16, 192)
            >>> torch.allclose(features[:, 3], vit.forward_features(image)[:, 1:], atol=1e-4)
            True

        Source:
            Kernels as in I3D (arXiv:1705.07750). Difference: prefix tokens are compensated.
        """
        # timm takes seconds to import; who has a timm model has imported it already.
        from jepakit.nn._backbones.plain import read_plain_vit

        tubelet_size = as_int("tubelet_size", tubelet_size, minimum=1)
        num_frames = as_int("num_frames", num_frames, minimum=1)
        if num_frames % tubelet_size:
            raise ValueError(f"num_frames={num_frames}: must be a multiple of {tubelet_size=}")
        vit = read_plain_vit(unwrap(timm_vit) if isinstance(timm_vit, nn.Module) else timm_vit)
        steps = num_frames // tubelet_size
        num_registers = len(vit.prefix)
        encoder = cls(
            (steps, *vit.grid_size),
            vit.embed_dim,
            vit.depth,
            vit.num_heads,
            embed=Tubelets((tubelet_size, *vit.patch_size), vit.embed_dim, vit.in_channels),
            mlp_ratio=(vit.mlp_dim + 0.5) / vit.embed_dim,  # rounded down to `mlp_dim`
            drop_path=vit.drop_path,
            layer_scale=1.0 if vit.has_layer_scale else None,
            position="learned",
            num_registers=num_registers,
            repeat_registers=num_registers > 0,
        )
        kernel = vit.kernel[:, :, None].repeat(1, 1, tubelet_size, 1, 1) / tubelet_size
        state = vit.tensors | {
            "embed.proj.weight": kernel,
            "embed.proj.bias": vit.bias,
            "position_table": vit.positions.repeat(steps, 1),
        }
        if num_registers:
            state["registers"] = vit.prefix
        encoder.to(vit.kernel).load_state_dict(state)
        return encoder.train(timm_vit.training)

    def deflate(self, step: int = 0) -> nn.Module:
        r"""Image model with a copy of the weights of this encoder of clips; `inflate` undone.

        The kernel of a tubelet is summed over its frames, and positions are those of one step of
        time. So an image has the features that a tubelet of equal frames has at this step, as a
        context without other steps. Registers become register tokens of timm's, in front of
        patches.

        With `repeat_registers` only a clip of one step counts registers as an image does.

        Args:
            step: Step of time whose positions are taken, of learned or added ones.

        Returns:
            A `VisionTransformer` of timm's, as `MaskedViT` takes it, without class token and head.

        Raises:
            ValueError: If the encoder has rotary positions or another embedding than `Tubelets`, or
                there is no such step.

        Example:
            >>> from jepakit.nn import TokenViT, Tubelets
            >>> embed = Tubelets((2, 16, 16), 96)
            >>> encoder = TokenViT(
            ...     (4, 4, 4), 96, depth=2, num_heads=3, embed=embed, position="sincos")
            >>> vit = encoder.deflate()
            >>> vit.patch_embed.grid_size, vit.num_prefix_tokens
            ((4, 4), 0)
        """
        from jepakit.nn._backbones.plain import PlainViT, build_plain_vit

        step = as_int("step", step, minimum=0)
        embed = unwrap(self.embed)
        if not isinstance(embed, Tubelets):
            raise ValueError(f"embed={type(embed).__name__}: must be Tubelets to be deflated")
        if self._is_rotary:
            raise ValueError(
                f"position={self.position!r}: rotary positions cannot be carried over; must be "
                "'sincos' or 'learned'"
            )
        steps, *sides = self.grid_size
        if step >= steps:
            raise ValueError(f"step={step}: must be below the {steps} steps of the grid")
        tensors = clean_names(self.state_dict().items())
        positions = self._position_rows(self.grid_size).detach()
        block = cast(Block, unwrap(self.blocks[0]))
        kernel, bias = tensors.pop("embed.proj.weight"), tensors.pop("embed.proj.bias")
        prefix = tensors.pop("registers", kernel.new_zeros(0, self.embed_dim))
        tensors.pop("position_table", None)
        last = cast(Block, unwrap(self.blocks[-1]))
        vit = build_plain_vit(
            PlainViT(
                patch_size=cast(tuple[int, int], embed.patch_size[1:]),
                grid_size=cast(tuple[int, int], tuple(sides)),
                in_channels=embed.in_channels,
                embed_dim=self.embed_dim,
                depth=len(self.blocks),
                num_heads=block.attn.num_heads,
                mlp_dim=cast(nn.Linear, block.mlp.fc1).out_features,
                drop_path=last.drop_path.prob,
                has_layer_scale=not isinstance(block.ls1, nn.Identity),
                kernel=kernel.sum(dim=2),
                bias=bias,
                prefix=prefix,
                positions=positions.view(*self.grid_size, -1)[step].flatten(0, 1).to(kernel),
                tensors=tensors,
            )
        )
        return cast(nn.Module, vit.train(self.training))

    def _sequence(
        self, inputs: Tensor, context: TokenSet | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Registers and embedded tokens, the key mask, and rotary positions."""
        grid = self._check(inputs, context)
        x = self._embeddings(inputs, context, grid)
        key_mask = self._key_mask(context, grid, x)
        rows = self._position_rows(grid)
        idx = None if context is None else context.idx
        rotary = None
        if self._is_rotary:
            # Registers have the position of token 0, where nothing turns.
            before = rows[:1].expand(self.num_registers, -1)
            if idx is None:
                rotary = torch.cat([before, rows])[None]
            else:
                rotary = F.embedding(F.pad(idx, (self.num_registers, 0)), rows)
            rotary = rotary.to(x.dtype)
        else:
            x = x + (rows if idx is None else F.embedding(idx, rows))
        if self.registers is not None:
            x = torch.cat([self.registers.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        return x, key_mask, rotary

    def _embeddings(
        self, inputs: Tensor, context: TokenSet | None, grid: tuple[int, ...]
    ) -> Tensor:
        if isinstance(unwrap(self.embed), PatchEmbedding):
            return cast(Tensor, self.embed(inputs, context))
        x = self.embed(inputs)
        expected = (len(inputs), math.prod(grid), self.embed_dim)
        if tuple(x.shape) != expected:
            raise ValueError(f"embed returned {tuple(x.shape)}: must be [b N d] = {expected}")
        return x if context is None else take_tokens(x, context)

    def _key_mask(
        self, context: TokenSet | None, grid: tuple[int, ...], embedded: Tensor
    ) -> Float[Tensor, "#b 1 1 n"] | None:
        """Mask that is added to the scores of registers and tokens as keys; None for none.

        It has the dtype of the embeddings, which is that of the queries, also under autocast.
        """
        mask = None
        if context is not None and context.padded:
            valid = F.pad(context.valid, (self.num_registers, 0), value=True)
            mask = additive_key_mask(valid, embedded.dtype)
        if self.repeat_registers and grid[0] > 1:
            # Not `math.log`, with which every length of a clip would compile anew.
            log_steps = embedded.new_ones(grid[0]).sum().log()
            bias = F.pad(log_steps.expand(self.num_registers), (0, embedded.shape[1]))
            mask = bias[None, None, None] if mask is None else mask + bias
        return mask

    def _check(self, inputs: Tensor, context: TokenSet | None) -> tuple[int, ...]:
        """Raise unless inputs and context fit; return the grid of the inputs."""
        check_floating("inputs", inputs)
        shape = tuple(inputs.shape)
        if len(shape) < 2 or shape[0] == 0:
            raise ValueError(f"inputs {shape}: must be a batch [b c *sides] that is not empty")
        embed = unwrap(self.embed)
        if isinstance(embed, PatchEmbedding):
            check_channels(embed, shape)
        grid = self._grid_of(shape[2:])
        check_weight_dtype("inputs", inputs, embed)
        if context is not None:
            check_context(context, grid, "inputs", inputs)
        if value_checks_on(inputs):
            check_images_finite("inputs", inputs)
        return grid

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        return (
            f"grid_size={self.grid_size}, position={self.position!r}, "
            f"uniform_power={self.uniform_power}, "
            f"num_registers={self.num_registers}, repeat_registers={self.repeat_registers}"
        )
