"""The convolutional stem of the embedded encoder: features across the borders of patches, added to the patch embedding.

A patch embedding is one matrix per patch of 16 x 16 px: it sees no neighbouring pixels. A defect of a few pixels is
recognized by its nearest surroundings, so the stem reads these at full resolution (Xiao et al. 2021, arXiv:2106.14881).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError

# Pixels enter the encoder as (grey - 128) / 64, so that folded weights are as large as the original ones.
PIXEL_OFFSET = 128.0
PIXEL_SCALE = 64.0


class Stem(nn.Module):
    """A small residual network without norms over scaled grey pixels [B, 1, H, W].

    widths: channels at a half, a quarter, an eighth and a sixteenth of the frame's size. width: of the tokens.
    Convolutions are 3 x 3, one per halving and then `BLOCKS` residual ones at each size.
    """

    BLOCKS = (0, 1, 3, 2)

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        before = (1, *widths[:-1])
        self.halvings = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(before, widths, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in range(count))
            for c, count in zip(widths, self.BLOCKS, strict=True)
        )
        self.join = nn.Conv2d(widths[-1], width, 1)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                if name.startswith("blocks"):
                    layer.weight.data.mul_(0.3)
        nn.init.zeros_(self.join.weight)  # untrained, it adds nothing to the patch embedding

    def forward(self, x: Tensor) -> Tensor:
        """The addition to the patch embedding: [B, width, H / 16, W / 16]."""
        return self.join(self.maps(x)[-1])  # type: ignore[no-any-return]

    def maps(self, x: Tensor) -> list[Tensor]:
        """The activations at each of the four sizes."""
        found = []
        for halving, blocks in zip(self.halvings, self.blocks, strict=True):
            x = halving(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = x + block(F.relu(x))
            x = F.relu(x)
            found.append(x)
        return found


class StemmedEmbedding(nn.Conv2d):
    """open_clip's patch embedding `conv1` plus a stem; reads normalized RGB images like `conv1`."""

    def __init__(
        self, embedding: nn.Conv2d, widths: Sequence[int], *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        if tuple(embedding.kernel_size) != (16, 16):
            raise CheckpointError(
                f"a stem needs patches of 16x16 px, not {embedding.kernel_size[0]}x{embedding.kernel_size[1]}"
            )
        super().__init__(embedding.in_channels, embedding.out_channels, 16, stride=16, bias=False)
        self.weight = embedding.weight
        self.stem = Stem(widths, embedding.out_channels)
        self._mean, self._std = mean[0], std[0]

    def forward(self, image: Tensor) -> Tensor:
        """[B, 3, H, W], the three channels of a grey image, to [B, width, H / 16, W / 16]."""
        grey = 255 * (image[:, :1] * self._std + self._mean)
        return super().forward(image) + self.stem((grey - PIXEL_OFFSET) / PIXEL_SCALE)  # type: ignore[no-any-return]


def stem_of(embedding: nn.Module) -> Stem | None:
    """The stem of a tower's patch embedding, or None."""
    return embedding.stem if isinstance(embedding, StemmedEmbedding) else None


def tokens_of(stem: Stem, scaled: Tensor) -> Tensor:
    """Scaled pixels [B, H, W] to tokens [B, P, width] in the order of the patches."""
    added: Tensor = stem(scaled[:, None])
    return added.flatten(2).transpose(1, 2)
