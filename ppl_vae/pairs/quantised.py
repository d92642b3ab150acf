"""What VQ-VAEs share: sites of codes, a deterministic guide, and training in two stages."""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.distributions import Autoregressive, Codebook
from ppl_vae.nn import CodebookHead, CodeNetwork, GatedPixelCNN, OneHot, Quantiser, straight_through
from ppl_vae.pair import Pair

__all__ = ["CodesAlone", "PriorsAlone", "QuantisedPair"]

Codes = dict[str, Tensor]
Quantise = Callable[[str, Tensor], Tensor]


class QuantisedPair(Pair):
    """p(z_1) p(z_2 | z_1) ... p(x | z);  q(z | x) = delta of the codes nearest to what the encoder says.

    Sites are grids of code vectors, in the order of `quantisers`, each (D, H, W). A VQ-VAE's guide leaves nothing to
    chance, so that the ELBO is log p(x | z) + log p(z), a two-part code: -ELBO is an upper bound of -log p(x), which no
    number of particles makes tighter. The factor "commitment" is what training adds (`Quantiser.loss`).

    `fit` trains all at once, the priors on codes that still move. `stages` are what the literature does: first
    the codes under a uniform prior, then the priors on codes that stay.

    A subclass says `read` and `decode`, and may say `context`. Its constructor calls `set_codes`.

    Args:
        data_shape: of one datum.
        classes: K, where c (B,) are classes that the priors are told; None for programs of x alone.
    """

    quantisers: nn.ModuleDict
    """Site -> its codes, in the order in which the model draws them."""

    priors: nn.ModuleDict
    """Site -> the network of its codes, where it is not uniform for good."""

    def __init__(self, data_shape: tuple[int, ...], classes: int | None) -> None:
        super().__init__()
        self.data_shape, self.classes = data_shape, classes
        self.told = None if classes is None else OneHot(classes)
        self.quantisers, self.priors = nn.ModuleDict(), nn.ModuleDict()
        self.grids: dict[str, tuple[int, ...]] = {}

    @abstractmethod
    def read(self, x: Tensor, quantise: Quantise) -> None:
        """Call `quantise(site, features (B, D, H, W))` for each site in turn; it gives the codes, straight through."""

    @abstractmethod
    def decode(self, codes: Mapping[str, Tensor]) -> TorchDistribution:
        """p(x | z) for codes (..., D, H, W) of each site."""

    def context(self, site: str, before: Mapping[str, Tensor], c: Tensor | None) -> Tensor | None:
        """What the prior of a site is told, (..., F): the class, and of a subclass the codes drawn before."""
        return None if self.told is None or c is None else self.told(c)

    def set_codes(
        self, site: str, quantiser: Quantiser, grid: tuple[int, ...], trunk: Callable[..., GatedPixelCNN] | None
    ) -> None:
        """Add a site: a grid of codes, and of its prior the network, if any, made for a head's `raw_shape`."""
        self.quantisers[site], self.grids[site] = quantiser, grid
        if trunk is None:
            return
        head = CodebookHead((quantiser.dim, *grid), quantiser.current, quantiser.number)
        network = trunk(head.raw_shape)
        last = network.last[-1]
        assert isinstance(last.weight, Tensor)
        nn.init.zeros_(last.weight)  # uniform until it has learnt something
        self.priors[site] = CodeNetwork(network, head)

    def prior(self, site: str, before: Mapping[str, Tensor], x: Tensor, c: Tensor | None) -> TorchDistribution:
        """p(z_site | codes before, c)."""
        if site not in self.priors:
            return self.uniform(site)
        network, context = self.priors[site], self.context(site, before, c)
        assert isinstance(network, CodeNetwork)
        return Autoregressive(network, context, () if context is not None else x.shape[:1])

    def uniform(self, site: str) -> TorchDistribution:
        """All codes of a site equally likely at each place."""
        codes, grid = self.quantiser(site).current(), self.grids[site]
        return Codebook(codes, codes.new_zeros(len(codes), *[1] * len(grid)).expand(-1, *grid), len(grid))

    def quantiser(self, site: str) -> Quantiser:
        """Of a site."""
        found = self.quantisers[site]
        assert isinstance(found, Quantiser)
        return found

    def begin(self, x: Tensor, c: Tensor | None = None) -> None:
        """Set the codes of each site by k-means of what the encoder says of these data, unless they have begun."""

        def quantise(site: str, z: Tensor) -> Tensor:
            self.quantiser(site).start(z)
            return self.quantiser(site).nearest(z)

        with torch.no_grad():
            self.read(x, quantise)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Codes:
        """The codes of data (B, *data_shape): site -> (B, D, H, W)."""
        found: Codes = {}

        def quantise(site: str, z: Tensor) -> Tensor:
            return found.setdefault(site, self.quantiser(site).nearest(z))

        self.read(x, quantise)
        return found

    @torch.no_grad()
    def numbers(self, codes: Mapping[str, Tensor]) -> Codes:
        """The numbers of codes (B, D, H, W): site -> (B, H, W) int64."""
        return {site: self.quantiser(site)(z) for site, z in codes.items()}

    def stages(self) -> dict[str, Pair]:
        """The codes under a uniform prior; then the priors, on codes that stay as they are."""
        return {"codes": CodesAlone(self), **({"prior": PriorsAlone(self)} if self.priors else {})}

    def model(self, x: Tensor, c: Tensor | None = None) -> None:
        """p(x, z | c) for x of shape (B, *data_shape), and classes c (B,) if there are any."""
        self.check(c)
        self.generated(x, lambda site, before: self.prior(site, before, x, c))

    def generated(self, x: Tensor, prior: Callable[[str, Codes], TorchDistribution]) -> None:
        """The model's sites under a prior for each site of codes, given those before."""
        with pyro.plate("data", len(x), dim=-1):
            codes: Codes = {}
            for site in self.quantisers:
                codes[site] = pyro.sample(site, prior(site, codes))
            pyro.sample("x", self.decode(codes), obs=x)

    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        """q(z | x), a point."""
        losses: list[Tensor] = []

        def quantise(site: str, z: Tensor) -> Tensor:
            quantiser = self.quantiser(site)
            e = quantiser.vectors(quantiser(z))
            losses.append(quantiser.loss(z, e))
            value = straight_through(z, e)
            pyro.sample(site, dist.Delta(value, event_dim=value.dim() - 1))
            return value

        with pyro.plate("data", len(x), dim=-1):
            self.read(x, quantise)
            pyro.factor("commitment", torch.stack(losses).sum(0), has_rsample=True)

    def check(self, c: Tensor | None) -> None:
        """Refuse a batch with classes where there are none, or the reverse."""
        if (c is None) != (self.classes is None):
            got, wanted = ("x alone", "(x, c)") if c is None else ("(x, c)", "x alone")
            raise ValueError(f"got {got}, expected {wanted}: the pair was made with classes={self.classes}")


class CodesAlone(Pair):
    """A VQ-VAE under uniform priors: the first stage of its training.

    Args:
        whole: the pair whose encoder, codes and decoder are trained.
    """

    def __init__(self, whole: QuantisedPair) -> None:
        super().__init__()
        self.whole, self.data_shape = whole, whole.data_shape

    def begin(self, x: Tensor, c: Tensor | None = None) -> None:
        """As of the whole."""
        self.whole.begin(x, c)

    def model(self, x: Tensor, c: Tensor | None = None) -> None:
        """p(x, z), all codes equally likely."""
        self.whole.check(c)
        self.whole.generated(x, lambda site, before: self.whole.uniform(site))

    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        """q(z | x), a point."""
        self.whole.guide(x, c)


class PriorsAlone(Pair):
    """p(z | c) of the codes of data, which stay as they are: the second stage of a VQ-VAE's training.

    Sites are those of the codes, all observed; the ELBO is log p(z | c), exactly.

    Args:
        whole: the pair whose priors are trained.
    """

    def __init__(self, whole: QuantisedPair) -> None:
        super().__init__()
        self.whole, self.data_site = whole, next(iter(whole.quantisers))  # type: ignore[misc]

    def model(self, x: Tensor, c: Tensor | None = None) -> None:
        """p(z | c) at the codes of x."""
        self.whole.check(c)
        codes = self.whole.codes(x)
        with pyro.plate("data", len(x), dim=-1):
            for site, z in codes.items():
                pyro.sample(site, self.whole.prior(site, codes, x, c), obs=z)

    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        """Nothing: there are no latent sites."""
