"""Attention of each pixel to those before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae.nn.causal_conv import Place, Stepwise
from ppl_vae.nn.init import glorot_
from ppl_vae.nn.shapes import as_size

__all__ = ["CausalAttention"]


class CausalAttention(nn.Module, Stepwise):
    """Features (N, h, H, W) -> (N, h, H, W), those at i from those at j <= i, in the order rows, columns.

    q, k, v = W norm(x);  out_i = U sum_(j <= i) softmax_j(q_i k_j / sqrt(d)) v_j, each of the heads with d = h / heads
    features. Causal where the features at i are functions of x_<i, as of a pixel network past its first layer. It is
    meant as x + attention(x). Places count by their order alone: where they are the features must tell.

    Inside `stepwise` it takes one pixel (N, h, 1, 1), and keeps the keys and values of those before.

    Args:
        hidden: h, a multiple of `heads`.
        heads: of the attention.

    Raises:
        ValueError: sizes below 1, or features that can't be shared among the heads.

    References:
        Attention is all you need, Vaswani et al. 2017, section 3.2.
        PixelSNAIL: an improved autoregressive generative model, Chen, Mishra, Rohaninejad & Abbeel 2018 (of pixels).

    Example:
        >>> import torch
        >>> CausalAttention(8, heads=2)(torch.zeros(5, 8, 4, 4)).shape
        torch.Size([5, 8, 4, 4])
    """

    def __init__(self, hidden: int, heads: int = 4) -> None:
        super().__init__()
        hidden, self.heads = as_size(hidden, "hidden"), as_size(heads, "heads")
        if hidden % heads:
            raise ValueError(
                f"hidden: got {hidden} features, expected a multiple of the {heads} heads; change hidden or heads"
            )
        self.norm = nn.LayerNorm(hidden)
        self.before = glorot_(nn.Linear(hidden, 3 * hidden), blocks=3)
        self.after = glorot_(nn.Linear(hidden, hidden))
        self._steps: _Steps | None = None

    def forward(self, x: Tensor) -> Tensor:
        """What all pixels attend to, or what the one at the place that is next does."""
        pixels = self.before(self.norm(x.flatten(2).transpose(1, 2)))  # (N, H W, 3 h)
        q, k, v = pixels.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, H W, d) each
        if self._steps is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = self._steps.seen(k, v)
            out = F.scaled_dot_product_attention(q, k, v)
        return self.after(out.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])

    def begin_steps(self, place: Place, batch: int, height: int, width: int) -> None:
        """Pixel by pixel from now on."""
        self._steps = _Steps(self, place, batch, height, width)

    def end_steps(self) -> None:
        """All pixels at once again."""
        self._steps = None


class _Steps:
    """The keys and values of N images that one attention has seen."""

    def __init__(self, attention: CausalAttention, place: Place, batch: int, height: int, width: int) -> None:
        weight, heads = attention.after.weight, attention.heads
        self.place, self.width = place, width
        self.kept = weight.new_zeros(2, batch, heads, height * width, len(weight) // heads)

    def seen(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those up to the place that is next, whose own, (N, heads, 1, d) each, are kept."""
        last = self.place.row * self.width + self.place.column
        self.kept[:, :, :, last] = torch.stack((k, v))[..., 0, :]
        keys, values = self.kept[..., : last + 1, :]
        return keys, values
