"""What DRAW and alignDRAW are made of: one paints on a canvas step by step, the other looks at what is missing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_vae.nn import LSTM, MLP, Head, Memory, Window, WindowHead, as_shape, as_size

__all__ = ["Onlooker", "Painter", "State", "image_shape"]


class State(NamedTuple):
    """Where a painter stands.

    memory     of its LSTM: h_t.
    canvas     c_t, raw parameters of the image's distribution, (..., P, C, H, W).
    window     through which it painted last; None without attention, and before the first step.
    alpha      weights of a caption's words, (..., B, L); None without a caption.
    context    what else it carries along: the caption as it was read.
    """

    memory: Memory
    canvas: Tensor
    window: Window | None = None
    alpha: Tensor | None = None
    context: Any = None


class Painter(nn.Module):
    """h_t = LSTM(h_{t-1}, input);  c_t = c_{t-1} + write(h_t);  p(x) = head(c_T).

    write(h) is F_Y^T w F_X / gamma of a patch w(h) through a window that h moves, one for all channels; or without
    attention one linear map.

    Args:
        head: of the image, of shape (C, H, W).
        in_dim: size of an input.
        hidden: size of h.
        size: N, the patch's side; None paints without attention.

    References:
        DRAW: A recurrent neural network for image generation, Gregor et al. 2015, eq. 7, 8, 28 and 29.
    """

    def __init__(self, head: Head, in_dim: int, hidden: int, size: int | None) -> None:
        super().__init__()
        self.head = head
        self.lstm = LSTM(in_dim, hidden)
        self.canvas = nn.Parameter(torch.zeros(head.raw_shape))
        planes, _, height, width = head.raw_shape
        self.window = None if size is None else WindowHead(hidden, size, height, width)
        side = (height, width) if size is None else (as_size(size, "write"),) * 2
        self.patch = MLP(hidden, (planes * head.shape[0], *side), hidden=())

    def start(self) -> State:
        """The first state, without leading dims."""
        return State(self.lstm.start(), self.canvas)

    def forward(self, state: State, inputs: Tensor) -> State:
        """One more stroke, for inputs (..., in_dim)."""
        memory = self.lstm(inputs, state.memory)
        patch, window = self.patch(memory.h), self.window and self.window(memory.h)
        stroke = patch if window is None else window.write(patch)
        canvas = state.canvas + stroke.reshape(*stroke.shape[:-3], *self.head.raw_shape)
        return state._replace(memory=memory, canvas=canvas, window=window)

    @torch.no_grad()
    def set_output_mean(self, mean: Tensor) -> None:
        """Start the canvas at the pixel means of the training data, (C, H, W)."""
        self.canvas.copy_(self.head.bias_for_mean(mean))


class Onlooker(nn.Module):
    """h_t = LSTM(h_{t-1}, [read(x, x - E p(x | c)), h^paint]): a guide's look at the image and at what is missing.

    read gives gamma F_Y x F_X^T and the same of the difference, through a window that h^paint moves; or without
    attention both images as they are.

    Args:
        head: of the image, of shape (C, H, W).
        painter: size of the painter's h.
        hidden: size of h.
        size: N, the side of what is read; None reads without attention.

    References:
        DRAW: A recurrent neural network for image generation, Gregor et al. 2015, eq. 3 to 5 and 27.
    """

    def __init__(self, head: Head, painter: int, hidden: int, size: int | None) -> None:
        super().__init__()
        self.head = head
        channels, height, width = head.shape
        self.window = None if size is None else WindowHead(painter, as_size(size, "read"), height, width)
        seen = 2 * channels * (height * width if size is None else size**2)
        self.lstm = LSTM(seen + painter, hidden)

    def start(self) -> Memory:
        """The first memory."""
        return self.lstm.start()

    def forward(self, x: Tensor, state: State, memory: Memory) -> tuple[Memory, Window | None]:
        """The memory after a look at x (B, C, H, W), and the window."""
        h = state.memory.h
        window = self.window and self.window(h)
        views = [x, x - self.head(state.canvas).mean]
        if window is not None:
            views = [window.read(view) for view in views]
        flat = [view.flatten(-3) for view in views]
        leading = torch.broadcast_shapes(*(part.shape[:-1] for part in (*flat, h)))
        parts = [part.expand(*leading, -1) for part in (*flat, h)]
        return self.lstm(torch.cat(parts, -1), memory), window


def image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one image, (C, H, W).

    Raises:
        ValueError: it is another.
    """
    found = as_shape(shape, "data_shape")
    if len(found) != 3:
        raise ValueError(f"data_shape: got {found}, expected (channels, height, width) to paint on; reshape the data")
    return found
