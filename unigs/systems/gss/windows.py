"""Window attention over a map: stock Swin layers, alternately shifted by half a window."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import SwinConfig
from transformers.models.swin.modeling_swin import SwinLayer


class Windows(nn.Module):
    """Swin layers and the LayerNorm behind them.

    Args:
        dim: channels.
        blocks: layers; every second one is shifted.
        heads: of the attention.
        window: cells along a side of a window; maps are padded to multiples of it.
    """

    def __init__(self, dim: int, blocks: int, heads: int, window: int) -> None:
        super().__init__()
        config = SwinConfig(window_size=window, drop_path_rate=0.0, attn_implementation="sdpa")
        shifts = [window // 2 * (block % 2) for block in range(blocks)]
        self.layers = nn.ModuleList(
            SwinLayer(config, dim, (window, window), heads, shift_size=shift) for shift in shifts
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Tensor) -> Tensor:
        """float [B, C, h, w] -> float [B, h, w, C]."""
        size = maps.shape[-2:]
        cells = maps.flatten(2).transpose(1, 2)  # [B, h w, C]
        for layer in self.layers:
            # Or a layer would shrink its window for good at the first small map.
            cells, _ = layer(cells, tuple(size), always_partition=True)
        return self.norm(cells).unflatten(1, size)
