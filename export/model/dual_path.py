"""The dual-path encoder (paper section 3.2, eq. 1-7): Q-K attention and, in parallel, V-V attention.

Both paths use the same pretrained weights; nothing is retrained. The module is built over an open_clip
VisionTransformer and shares its parameters, except the patch embedding, which is folded to one grey channel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError
from .stem import PIXEL_OFFSET, PIXEL_SCALE, stem_of, tokens_of

LARGE_SCORE = 16.0
"""From this attention score on (after scaling by 1/sqrt(d)), fp16 changes an attention weight by up to 1 %."""
MAX_TOKEN_DRIFT = 1e-3
"""Largest mean relative change of a level's tokens that a layer in fp16 may cause."""


@dataclass(frozen=True)
class Levels:
    """The encoder's output for B frames, one entry per level (m entries).

    tokens: Z_j [B, 1 + P, D], the output of the vanilla path, CLS first (eq. 6).
    value: ln_post(V_j) @ proj [B, P, C], the V-V path of the patches in the text space (eq. 7).
    cls: ln_post(CLS of Z_j) @ proj [B, C]; at the last level this is open_clip's `encode_image`.
    """

    tokens: list[Tensor]
    value: list[Tensor]
    cls: list[Tensor]


class DualPathEncoder(nn.Module):
    """Frames to the features of m levels.

    visual: an open_clip VisionTransformer with a class token, learned positions and plain residual blocks.
    mean, std: RGB statistics of its training pixels in [0, 1].
    levels: how many encoding blocks; the layers are divided evenly among them (paper: m = 4).
    last_level_only: output the last of them only (the paper's "w/o multi-layer").
    Raises CheckpointError for towers without the parts that the dual path needs.
    """

    patch_weight: Tensor
    patch_position: Tensor
    class_token: Tensor

    def __init__(
        self,
        visual: VisionTransformer,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        levels: int = 4,
        last_level_only: bool = False,
    ) -> None:
        super().__init__()
        _check_supported(visual, levels)
        self.image_size: tuple[int, int] = tuple(visual.image_size)
        self.patch_size: tuple[int, int] = tuple(visual.patch_size)
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.blocks = nn.ModuleList(visual.transformer.resblocks)
        self.stem = stem_of(visual.conv1)
        self.ln_pre = visual.ln_pre
        self.ln_post = visual.ln_post
        self.proj = visual.proj
        self.heads: int = visual.transformer.resblocks[0].attn.num_heads
        self.width: int = self.ln_post.normalized_shape[0]
        self.text_dim: int = self.proj.shape[1]
        step = len(self.blocks) // levels
        self.block_ends = tuple(range(step, len(self.blocks) + 1, step))
        self.level_layers = self.block_ends[-1:] if last_level_only else self.block_ends
        weight, bias = _grey_patch_embedding(visual.conv1.weight.detach(), mean, std)
        positions = visual.positional_embedding.detach()
        self.register_buffer("patch_weight", weight)
        self.register_buffer("patch_position", positions[1:] + bias)
        self.register_buffer("class_token", (visual.class_embedding.detach() + positions[0])[None, None])
        self.compute_dtype = torch.float32
        self.attention: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention
        self.fp32_layers: frozenset[int] = frozenset()
        self.fp32_attention: frozenset[int] = frozenset()
        self.eval().requires_grad_(False)

    def half_precision(self, pixels: Tensor, *, value_path: bool = True) -> DualPathEncoder:
        """A copy whose attention, MLP and projection are fp16, except where measurement on `pixels` forbids it.

        pixels: real frames, as for `forward`. Residual stream, LayerNorm, patch embedding and stem stay fp32: they are
        a few per cent of the work, and rounding Z after each addition doubles the error of the map. A layer that alone
        changes the tokens too much stays fp32 as a whole (`fp32_layers`, counted from 1). A layer with large attention
        scores computes attention, without its projections, in fp32 (`fp32_attention`).
        value_path: whether the copy is for a graph with the V path, whose scores then count, too.
        """
        half = copy.deepcopy(self)
        half.compute_dtype = torch.float16
        half.fp32_layers, half.fp32_attention = self._layers_to_keep(pixels, value_path=value_path)
        for layer, block in enumerate(half.blocks, start=1):
            if layer not in half.fp32_layers:
                _halve(block)
        half.proj = nn.Parameter(half.proj.half(), requires_grad=False)
        return half

    def _layers_to_keep(self, pixels: Tensor, *, value_path: bool) -> tuple[frozenset[int], frozenset[int]]:
        """Layers whose fp16 form alone changes the tokens of their level too much, and layers with large scores."""
        sensitive, large = set(), set()
        with torch.inference_mode():
            exact = [self.embed(pixels)]
            for layer, block in enumerate(self.blocks, start=1):
                q, k, v = self._heads_of(block, exact[-1])
                pairs = [(q, k), (v, v)] if value_path else [(q, k)]
                peak = max(float((a @ b.transpose(-1, -2)).abs().amax()) for a, b in pairs)
                if peak * q.shape[-1] ** -0.5 > LARGE_SCORE:
                    large.add(layer)
                exact.append(self._dual_path(block, exact[-1], layer, value_path=False)[0])
            for layer, block in enumerate(self.blocks, start=1):
                level = min(end for end in self.level_layers if end >= layer)
                z, _ = self._dual_path(_halve(copy.deepcopy(block)), exact[layer - 1], layer, value_path=False)
                for later in range(layer + 1, level + 1):
                    z, _ = self._dual_path(self.blocks[later - 1], z, later, value_path=False)
                norm = torch.linalg.vector_norm(exact[level], dim=-1)
                if float((torch.linalg.vector_norm(z - exact[level], dim=-1) / norm).mean()) > MAX_TOKEN_DRIFT:
                    sensitive.add(layer)
        return frozenset(sensitive), frozenset(large - sensitive)

    def forward(self, pixels: Tensor, *, value_path: bool = True) -> Levels:
        """Encode grey pixels in [0, 255]: float32 [B, height, width] of `image_size`. value_path: as `levels_of`."""
        return self.levels_of(self.embed(pixels), value_path=value_path)

    def levels_of(self, z: Tensor, *, value_path: bool = True) -> Levels:
        """The levels of embedded tokens [B, 1 + P, D], class token first; P need not fill the grid.

        value_path: False leaves the V path out, and `value` empty.
        """
        tokens, values, cls = [], [], []
        v: Tensor | None = None
        for layer, block in enumerate(self.blocks, start=1):
            z, v_i = self._dual_path(block, z, layer, value_path=value_path)
            if v_i is not None:
                v = v_i if v is None else v + v_i
            if layer in self.level_layers:
                tokens.append(z)
                if v is not None:
                    values.append(self.ln_post(v).to(self.compute_dtype) @ self.proj)
                cls.append(self.ln_post(z[:, 0]).to(self.compute_dtype) @ self.proj)
            if layer in self.block_ends:
                v = None
        return Levels(tokens, values, cls)

    def embed(self, pixels: Tensor) -> Tensor:
        """The first block's input for pixels as in `forward`: tokens [B, 1 + P, D], class token first."""
        (rows, columns), (high, wide) = self.grid, self.patch_size
        scaled = (pixels - PIXEL_OFFSET) / PIXEL_SCALE
        patches = scaled.reshape(-1, rows, high, columns, wide).permute(0, 1, 3, 2, 4)
        x = patches.reshape(-1, rows * columns, high * wide) @ self.patch_weight + self.patch_position
        if self.stem is not None:
            x = x + tokens_of(self.stem, scaled)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.ln_pre(x)  # type: ignore[no-any-return]

    def _dual_path(
        self, block: ResidualAttentionBlock, z: Tensor, layer: int, *, value_path: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """One dual-path block: Z^i (eq. 3) and, with value_path, V^i for the patches (eq. 4)."""
        q, k, v = self._heads_of(block, z)
        dtype = q.dtype
        if layer in self.fp32_attention:
            q, k, v = q.float(), k.float(), v.float()
        vanilla = self.attention(q, k, v)  # eq. 1
        # Eq. 2. The class token is a key as in the paper, but no query, since its V is not read.
        value = self.attention(v[:, :, 1:], v, v) if value_path else None
        out = block.attn.out_proj
        z = z + block.ls_1(out(self._join_heads(vanilla).to(dtype)).float())
        z = z + block.ls_2(block.mlp(block.ln_2(z).to(dtype)).float())
        return z, None if value is None else out(self._join_heads(value).to(dtype)).float()

    def _heads_of(self, block: ResidualAttentionBlock, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V of one block, [B, heads, N, D / heads], in the type of its weights."""
        y = block.ln_1(z).to(block.attn.in_proj_weight.dtype)
        q, k, v = F.linear(y, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        return self._split_heads(q), self._split_heads(k), self._split_heads(v)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.width // self.heads).transpose(1, 2)

    def _join_heads(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], self.width)


def _halve(block: nn.Module) -> nn.Module:
    """Convert the MatMuls of a block to fp16, in place; its LayerNorms stay fp32. Returns the block."""
    for name, module in block.named_children():
        if name in ("attn", "mlp"):
            module.half()
    return block


def _grey_patch_embedding(weight: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Fold grey to RGB, /255, mean, std and the pixel scaling into the patch weights.

    weight: [D, 3, high, wide]. Returns [high * wide, D] and a bias [D]; exact algebra, done in float64.
    """
    w = weight.double()
    per_channel = w / torch.tensor(std, dtype=torch.float64).reshape(1, 3, 1, 1)
    grey = per_channel.sum(1).flatten(1) / 255.0
    shift = (per_channel * torch.tensor(mean, dtype=torch.float64).reshape(1, 3, 1, 1)).sum((1, 2, 3))
    folded = (grey * PIXEL_SCALE).T.contiguous()
    bias = grey.sum(1) * PIXEL_OFFSET - shift
    return folded.to(weight.dtype), bias.to(weight.dtype)


def _check_supported(visual: VisionTransformer, levels: int) -> None:
    faults = []
    if not isinstance(visual, VisionTransformer):
        raise CheckpointError(f"the image tower is a {type(visual).__name__}; the dual path needs a VisionTransformer")
    blocks = list(visual.transformer.resblocks)
    if len(blocks) % levels:
        faults.append(f"its {len(blocks)} layers do not divide into {levels} levels")
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        faults.append("its blocks are not plain pre-norm residual attention blocks")
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        faults.append("it does not pool by its class token")
    if visual.proj is None:
        faults.append("it has no projection to the text space")
    if any(size % patch for size, patch in zip(visual.image_size, visual.patch_size, strict=True)):
        faults.append(f"its image size {visual.image_size} is not a multiple of its patch size {visual.patch_size}")
    if faults:
        raise CheckpointError("this image tower cannot carry the dual path: " + "; ".join(faults))
