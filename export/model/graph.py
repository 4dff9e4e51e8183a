"""The exported graph: uint8 frames and recipe tensors in, probabilities, defect map and features out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.resize import bicubic_matrix

from . import heads
from .dual_path import DualPathEncoder, Levels


class SemClipGraph(nn.Module):
    """Encoder and heads as one module; its signature is the one of the bundle's ONNX files.

    input_size: [height, width] of `frames`. Where it differs from the encoder's image size the antialiased bicubic
    resize is part of the graph, as two matrix products.
    value_path: whether the graph computes the V path; without it, it answers for recipes whose lambda_v is 0 alone.
    """

    resize_vertical: Tensor
    resize_horizontal: Tensor

    def __init__(
        self,
        encoder: DualPathEncoder,
        *,
        redundancy: str = "cls_weight",
        input_size: tuple[int, int] | None = None,
        value_path: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.redundancy = redundancy
        self.value_path = value_path
        self.input_size = input_size or encoder.image_size
        self.resizes = self.input_size != encoder.image_size
        if self.resizes:
            vertical = bicubic_matrix(self.input_size[0], encoder.image_size[0])
            horizontal = bicubic_matrix(self.input_size[1], encoder.image_size[1])
            self.register_buffer("resize_vertical", torch.from_numpy(vertical))
            self.register_buffer("resize_horizontal", torch.from_numpy(horizontal.T.copy()))

    def half_precision(self, frames: Tensor) -> SemClipGraph:
        """A copy with an fp16 encoder and transformation layers; resize, other heads and recipe inputs stay fp32.

        frames: real ones, uint8 [n, height, width]; they show which attention layers need fp32 too.
        """
        return self._over(self.encoder.half_precision(self.pixels(frames), value_path=self.value_path), self.value_path)

    def without_value_path(self) -> SemClipGraph:
        """The same graph, on the same encoder, without the V path."""
        return self._over(self.encoder, False)

    def _over(self, encoder: DualPathEncoder, value_path: bool) -> SemClipGraph:
        return SemClipGraph(encoder, redundancy=self.redundancy, input_size=self.input_size, value_path=value_path)

    def encode(self, frames: Tensor, *, value_path: bool = True) -> Levels:
        """uint8 [B, height, width] of `input_size` to the encoder's levels. value_path: as `DualPathEncoder.levels_of`.

        Teaching asks for the V path whether the graph has it or not.
        """
        levels: Levels = self.encoder(self.pixels(frames), value_path=value_path)
        return levels

    def pixels(self, frames: Tensor) -> Tensor:
        """What the encoder reads of uint8 frames: float32 [B, height, width] of its image size, in [0, 255]."""
        pixels = frames.float()
        if not self.resizes:
            return pixels
        # The filter overshoots at edges; the host's resize clips too.
        return (self.resize_vertical @ pixels @ self.resize_horizontal).clamp(0, 255)

    def forward(
        self,
        frames: Tensor,
        text_seg: Tensor,
        text_cls: Tensor,
        transform_weight: Tensor,
        transform_bias: Tensor,
        memory: Tensor,
        memory_scale: Tensor,
        head_weight: Tensor,
        head_bias: Tensor,
        scalars: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes as in docs/bundle-format.md; returns probabilities [B, K], defect_map [B, g, g], features [B, F]."""
        alpha, lambda_v, lambda_m, tau, tau_v, tau_s = scalars.unbind(0)
        levels = self.encode(frames, value_path=self.value_path)
        text = torch.cat([text_seg, text_cls])  # one product with both banks
        similarity = [
            heads.cosines(
                heads.transform(z[:, 1:].to(self.encoder.compute_dtype), transform_weight[j], transform_bias[j]), text
            )
            for j, z in enumerate(levels.tokens)
        ]
        vanilla = [heads.vanilla_logit(s[..., :2], tau) for s in similarity]
        value = [
            heads.value_logit(v, levels.cls[j], text_seg, tau_v, self.redundancy) for j, v in enumerate(levels.value)
        ]
        odd = [heads.oddness(z[:, 1:], memory[j]) for j, z in enumerate(levels.tokens)]
        remembered = heads.memory_map(odd, memory_scale)
        defect_map = heads.fuse_maps(vanilla, value, remembered, lambda_v, lambda_m)
        features = heads.head_features(levels.tokens, defect_map)
        p_s = heads.text_probabilities([s[..., 2:] for s in similarity], tau_s)
        p_c = heads.head_probabilities(features, head_weight, head_bias)
        return (1 - alpha) * p_s + alpha * p_c, defect_map.reshape(-1, *self.encoder.grid), features
