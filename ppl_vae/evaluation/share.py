"""A share of cases, with its standard error."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Share"]


@dataclass(frozen=True)
class Share:
    """A share of `number` cases, and its standard error."""

    value: float
    number: int

    @property
    def se(self) -> float:
        """sqrt(p (1 - p) / n)."""
        return (self.value * (1 - self.value) / self.number) ** 0.5

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.se:.3f})"

    @classmethod
    def of(cls, hits: Tensor) -> "Share":
        """Of a tensor of truth values."""
        return cls(hits.double().mean().item(), hits.numel())
