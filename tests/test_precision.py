"""Products in bfloat16: exactly those of the networks, and everything else as it was in float32."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ppl_vae import SVI, Pair, data
from ppl_vae.compile import CompiledBackward, eager_backward, loss_state, record
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.precision import precision
from ppl_vae.terms import draw
from tests.helpers import Z_LIMIT

EPS = 2.0**-8
"""Half a unit in the last place of bfloat16: what one rounding does, relatively."""


class Plain(Pair):
    """A user's pair: its networks are nn.Sequential, and their outputs go to the distributions as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(-3), nn.Linear(64, 20), nn.SiLU(), nn.Linear(20, 6))
        self.decoder = nn.Sequential(nn.Linear(3, 20), nn.LayerNorm(20), nn.Tanh(), nn.Linear(20, 64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            logits = self.decoder(z).unflatten(-1, (1, 8, 8))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(raw) + 1e-3).to_event(1))


PAIRS: dict[str, Callable[[], Pair]] = {
    "vae": lambda: VAE((1, 8, 8), 5, (20,)),
    "conv": lambda: VAE((1, 8, 8), 5, (4, 8), trunk="conv"),
    "logistic": lambda: VAE((1, 8, 8), 5, (20,), likelihood="discretised-logistic", levels=2),
    "two layers": lambda: HierarchicalVAE((1, 8, 8), (6, 3), ((20,), (10,))),
    "plain": Plain,
}
each_pair = pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)

# A module and the shapes of its inputs; its product by hand, from inputs and parameters.
LAYERS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]], Callable[..., Tensor]]] = {
    "linear": (lambda: nn.Linear(7, 5), [(3, 7)], F.linear),
    "linear without bias": (lambda: nn.Linear(7, 5, bias=False), [(2, 3, 7)], F.linear),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), [(6, 3), (6, 4)], F.bilinear),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), [(4, 2, 9)], F.conv1d),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), [(4, 2, 9, 8)], F.conv2d),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), [(2, 2, 5, 6, 7)], F.conv3d),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 3), [(4, 2, 9)], F.conv_transpose1d),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 3, 3), [(4, 2, 9, 8)], F.conv_transpose2d),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 3), [(2, 2, 5, 6, 7)], F.conv_transpose3d),
}


@pytest.fixture
def x() -> Tensor:
    return torch.bernoulli(torch.full((6, 1, 8, 8), 0.3))


def forwards(pair: nn.Module) -> list[str]:
    """Modules with a `forward` of their own instead of their class's."""
    return [name for name, module in pair.named_modules() if "forward" in vars(module)]


def gradient(pair: Pair) -> Tensor:
    return torch.cat([p.grad.flatten() for p in pair.parameters() if p.grad is not None])


@pytest.mark.parametrize(("make", "shapes", "product"), LAYERS.values(), ids=LAYERS)
def test_a_layer_is_a_product_in_bfloat16_cast_back(
    make: Callable[[], nn.Module], shapes: list[tuple[int, ...]], product: Callable[..., Tensor]
) -> None:
    layer, inputs = make(), [torch.randn(shape) for shape in shapes]
    plain = layer(*inputs)
    half = [tensor.bfloat16() for tensor in (*inputs, *layer.parameters())]
    with precision(layer, "bf16"):
        got = layer(*inputs)
    assert got.dtype == torch.float32
    assert torch.equal(got, product(*half).float())
    assert not torch.equal(got, plain)
    torch.testing.assert_close(got, plain, rtol=4 * EPS, atol=4 * EPS)
    assert torch.equal(layer(*inputs), plain)


def _float32(value: object) -> bool:
    return not (isinstance(value, Tensor) and value.is_floating_point()) or value.dtype == torch.float32


@each_pair
@pytest.mark.parametrize("particles", [1, 3])
def test_all_that_sites_see_is_float32(make: Callable[[], Pair], particles: int, x: Tensor) -> None:
    pair = make()
    with precision(pair, "bf16"):
        for site in draw(pair.model, pair.guide, x, num_particles=particles).draws[0].sites:
            assert site.log_prob.dtype == site.value.dtype == torch.float32, site.name
        guide = poutine.trace(pair.guide).get_trace(x)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(x)
    guide.compute_log_prob()
    model.compute_log_prob()
    nodes: list[Any] = [*guide.nodes.values(), *model.nodes.values()]
    sites = [node for node in nodes if node["type"] == "sample" and node["name"] != "data"]
    assert len(sites) >= 3
    for node in sites:
        base = getattr(node["fn"], "base_dist", node["fn"])
        held = [*vars(base).values(), *(getattr(base, name) for name in base.arg_constraints)]
        assert all(map(_float32, [*held, node["value"], node["log_prob"]])), node["name"]


@each_pair
def test_the_forward_pass_is_as_before_afterwards(make: Callable[[], Pair], x: Tensor) -> None:
    pair = make()
    loss = Trace_ELBO()(pair)

    def run() -> Tensor:
        torch.manual_seed(1)
        return loss(x).detach()

    before, inside = run(), None
    with precision(pair, "bf16"):
        inside = run()
    assert not torch.equal(inside, before)
    assert abs(inside - before) < 0.01 * before
    assert torch.equal(run(), before) and forwards(pair) == []
    with precision(pair, "float32"):
        assert torch.equal(run(), before) and forwards(pair) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_all_is_put_back_after_an_exception(error: type[BaseException], x: Tensor) -> None:
    pair = Plain()
    before, layer = pair.decoder(torch.ones(3)), pair.encoder[1]
    assert isinstance(layer, nn.Linear)

    def own(input: Tensor) -> Tensor:
        raise error

    layer.forward = own  # a user's, raised from within the product
    with pytest.raises(error), precision(pair, "bf16"):
        pair.encoder(x)
    assert forwards(pair) == ["encoder.1"] and layer.forward is own
    assert torch.equal(pair.decoder(torch.ones(3)), before)
    assert F.linear(torch.tensor([1 + 2.0**-12]), torch.ones(1, 1)) != 1.0, "products are float32 again"


def test_inside_of_itself_it_changes_nothing() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    plain = layer(x)
    with precision(layer, "bf16"):
        once = layer(x)
        with precision(layer, "bf16"):
            assert torch.equal(layer(x), once)
        assert torch.equal(layer(x), once) and not torch.equal(once, plain)
    with precision(layer, "bf16"):
        assert torch.equal(layer(x), once)
    assert torch.equal(layer(x), plain)


def test_copies_made_inside_are_float32_and_have_weights_of_their_own() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    plain = layer(x)
    with precision(layer, "bf16"):
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
        once = layer(x)
    with torch.no_grad():
        layer.weight.zero_()
    for twin in copies:
        assert torch.equal(twin(x), plain)
        with precision(twin, "bf16"):
            assert torch.equal(twin(x), once)
        assert torch.equal(twin(x), plain)


def test_derived_and_parametrised_layers_round_their_products_alone() -> None:
    class Scored(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            assert super().forward(input).dtype == torch.float32
            return super().forward(input).log_softmax(-1)

    x, scored = 30 * torch.randn(3, 7), Scored(7, 5)
    with precision(scored, "bf16"):
        got = scored(x)
    assert scored.bias is not None
    by_hand = F.linear(x.bfloat16(), scored.weight.bfloat16(), scored.bias.bfloat16()).float().log_softmax(-1)
    assert torch.equal(got, by_hand)

    normed = parametrizations.weight_norm(nn.Linear(7, 5, bias=False))
    with precision(normed, "bf16"):
        got = normed(x)
    weight = normed.weight
    assert isinstance(weight, Tensor) and torch.equal(got, F.linear(x.bfloat16(), weight.bfloat16()).float())


def test_recurrent_networks_embeddings_and_products_outside_of_layers_stay_float32() -> None:
    others, x = nn.ModuleDict({"rnn": nn.GRU(4, 4), "table": nn.Embedding(3, 4)}), torch.randn(5, 4)

    def run() -> Tensor:
        rows = others["table"](torch.tensor([2, 0, 1]))
        return others["rnn"](F.linear(x, rows) @ rows)[0]

    plain = run()
    with precision(others, "bf16"):
        assert torch.equal(run(), plain)


def test_unknown_precisions_and_other_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precision: got 'fp8', expected one of \('float32', 'bf16'\)"):
        precision(Plain(), "fp8").__enter__()  # pyright: ignore[reportArgumentType]
    pair = Plain()
    pair.decoder.double()
    with pytest.raises(ValueError, match=r"'bf16' for decoder.0.weight of torch.float64, expected torch.float32"):
        precision(pair, "bf16").__enter__()
    assert forwards(pair) == []
    with precision(pair, "float32"):
        assert pair.decoder(torch.ones(3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("trunk", ["mlp", "conv"])
def test_gradients_agree_with_float32s(trunk: str) -> None:
    torch.manual_seed(0)
    hidden = (100, 50) if trunk == "mlp" else (8, 16)
    pair = VAE((1, 8, 8), 10, hidden, trunk=trunk)  # pyright: ignore[reportArgumentType]
    x, loss = data.load("digits").train[:64].round(), Trace_ELBO()(pair)
    gradients = []
    for how in ("float32", "bf16"):
        pair.zero_grad()
        torch.manual_seed(1)
        with precision(pair, how):
            eager_backward(loss, x)
        assert {p.grad.dtype for p in pair.parameters() if p.grad is not None} == {torch.float32}
        gradients.append(gradient(pair).double())
    exact, rounded = gradients
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
    assert torch.cosine_similarity(rounded, exact, dim=0) > 0.999


@each_pair
def test_recorded_equals_eager_on_shared_noise(make: Callable[[], Pair], x: Tensor) -> None:
    pair = make()
    loss = IWAE(3)(pair)
    with precision(pair, "bf16"):
        recorded = record(loss, x)
        torch.manual_seed(1)
        eager = loss(x)
        gradients = torch.autograd.grad(eager, list(pair.parameters()))
    assert any(node.meta["val"].dtype == torch.bfloat16 for node in recorded.graph.graph.nodes if _is_tensor(node))
    # Outside, on purpose: a recorded step keeps its precision.
    torch.manual_seed(1)
    again, *found = recorded.graph(*loss_state(loss).values(), torch.ones(()), x, *recorded.noise())
    # The same operations on the same roundings: float32's tolerance.
    torch.testing.assert_close(again, eager.detach(), rtol=1e-6, atol=0)
    for a, b in zip(found, gradients, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() <= 1e-5 * b.norm() + 1e-7


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


@pytest.mark.parametrize("make", [PAIRS["conv"], PAIRS["plain"]], ids=["conv", "plain"])
def test_inductor_equals_eager(make: Callable[[], Pair], x: Tensor) -> None:
    pair = make()
    loss = IWAE(3)(pair)
    compiled, values, gradients = CompiledBackward(loss), [], []
    for run in (lambda x: eager_backward(loss, x), compiled):
        pair.zero_grad()
        torch.manual_seed(1)
        with precision(pair, "bf16"):
            values.append(run(x))
        gradients.append(gradient(pair))
    assert not compiled.failed and values[1].dtype == torch.float32
    # Both round the products, each its own way: Inductor leaves out roundings where it fuses operations, and oneDNN's
    # convolutions sum in another order for other layouts, threads and processors (gradients 0.6 to 0.8 of a rounding
    # apart over six seeds; of linear layers alone 0.07). They agree to one rounding to bfloat16, and both are farther
    # from the gradient in float32 than half of one: the compiled step has rounded too.
    # In the loss, a sum of many terms, those roundings average out: over twelve seeds it differed by 6.4e-6 of itself
    # (root mean square). The limit, 3.05e-5, is 4.8 of these: a failure rate of 2e-6.
    torch.testing.assert_close(values[1], values[0], rtol=EPS / 128, atol=0)
    limit = EPS * gradients[0].norm()
    assert (gradients[1] - gradients[0]).norm() <= limit
    pair.zero_grad()
    torch.manual_seed(1)
    eager_backward(loss, x)
    assert all((gradient(pair) - rounded).norm() > limit / 2 for rounded in gradients)


def test_training_reaches_the_bound_of_float32() -> None:
    """300 steps on digits: the ELBO of the last 50 steps' minibatches, on shared seeds."""
    digits = data.load("digits")

    def bound(how: str, seed: int) -> float:
        torch.manual_seed(seed)
        pair = VAE((1, 8, 8), 5, (50,))
        optim = torch.optim.Adam(pair.parameters(), lr=3e-3)
        with precision(pair, how):  # pyright: ignore[reportArgumentType]
            svi = SVI(pair, optim, Trace_ELBO(), compile="off")
            losses = [svi.step(digits.train[torch.randint(len(digits.train), (50,))].bernoulli()) for _ in range(300)]
        first, last = sum(losses[:10]) / (10 * 50), sum(losses[-50:]) / (50 * 50)
        assert first - last > 10, "it must learn: nats per datum"
        states = [value for state in optim.state.values() for value in state.values()]
        assert {t.dtype for t in (*pair.parameters(), *states)} == {torch.float32}
        return -last

    difference = torch.tensor([bound("bf16", seed) - bound("float32", seed) for seed in range(8)])
    assert difference.abs().max() > 0
    # Some standard errors, and 0.02 nats for what bfloat16 may cost; runs on one seed stay together.
    assert abs(difference.mean()) < Z_LIMIT * difference.std() / math.sqrt(8) + 0.02
    assert difference.std() < 0.1, "a spread that would hide a loss of tenths of a nat"
