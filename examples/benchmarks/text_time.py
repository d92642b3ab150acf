"""Training throughput of the text VAE, in words per second, beside the same model written by hand in PyTorch.

Both take blocks of steps in turn, from the same weights and on the same batches: sentences of random words, 12 to 32 of
them, as in Penn Treebank's buckets. First their losses are compared, on one batch and one seed. Printed: the median
over the rounds of words per second [quartiles], and of the ratio to the hand-written step of the same round (above 1 is
faster). Both keep the memory that a step frees, as `fit` does: else which of them pays for new pages is chance. Writes
text_time_DEVICE.json.

    python examples/benchmarks/text_time.py --out results
    python examples/benchmarks/text_time.py --device cuda --hidden 512 --out results
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae import SVI, report
from ppl_vae.heap import keep_freed_memory
from ppl_vae.objectives import TraceMeanField_ELBO
from ppl_vae.pairs import TextVAE

WIDTHS = (12, 17, 22, 27, 32)

Step = Callable[[Tensor], Tensor]


class ByHand(nn.Module):
    """LSTM in, z, LSTM out, as one would write it: the negative ELBO of a batch, KL in closed form."""

    def __init__(self, vocabulary: int, latent_dim: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embed_in, self.embed_out = nn.Embedding(vocabulary, embedding), nn.Embedding(vocabulary, embedding)
        self.reader = nn.LSTM(embedding, hidden, batch_first=True)
        self.to_posterior = nn.Linear(hidden, 2 * latent_dim)
        self.to_state = nn.Linear(latent_dim, 2 * hidden)
        self.writer = nn.LSTM(embedding + latent_dim, hidden, batch_first=True)
        self.out = nn.Linear(hidden, vocabulary - 1)

    def forward(self, x: Tensor) -> Tensor:
        """-ELBO, summed over the batch, for words (B, L) padded with 0."""
        states, _ = self.reader(self.embed_in(x))
        last = states[torch.arange(len(x), device=x.device), (x != 0).sum(1) - 1]
        mu, log_sigma = self.to_posterior(last).chunk(2, -1)
        z = mu + log_sigma.exp() * torch.randn_like(mu)
        kl = 0.5 * (mu.square() + (2 * log_sigma).exp() - 1) - log_sigma
        h, c = self.to_state(z).chunk(2, -1)
        before = self.embed_out(F.pad(x[:, :-1], (1, 0)))
        inputs = torch.cat([before, z.unsqueeze(1).expand(-1, x.shape[1], -1)], -1)
        states, _ = self.writer(inputs, (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()))
        logits = self.out(states).flatten(0, 1)
        return F.cross_entropy(logits, x.flatten() - 1, ignore_index=-1, reduction="sum") + kl.sum()

    @torch.no_grad()
    def take(self, pair: TextVAE) -> None:
        """The weights of a pair: module by module in the order in which both are written."""
        reader: Any = pair.encoder[0]
        ours: list[Any] = [reader.embed, pair.network.embed, reader.cell, *_linears(pair.encoder[1])]
        ours += [pair.network.first, pair.network.cell, pair.network.out]
        for module, other in zip(self.children(), ours, strict=True):
            module.load_state_dict(other.state_dict())


def main() -> None:
    args = arguments()
    torch.set_flush_denormal(True)  # before the thread pool starts: the threads inherit it
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    pair = TextVAE((max(WIDTHS),), args.vocabulary, args.latent_dim, args.embedding, args.hidden).to(args.device)
    by_hand = ByHand(args.vocabulary, args.latent_dim, args.embedding, args.hidden).to(args.device)
    by_hand.take(pair)
    batches = [sentences(width, args).to(args.device) for width in WIDTHS]
    losses = check_equal(pair, by_hand, batches[0])
    steps = {"ppl_vae": our_step(pair), "by hand": their_step(by_hand)}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(args.rounds + 1):
        for name in sorted(steps, reverse=bool(index % 2)):
            rate = words_per_second(steps[name], batches, args)
            if index:  # the first round warms up
                rates[name].append(rate)
    ratio = timing.quartiles([a / b for a, b in zip(rates["ppl_vae"], rates["by hand"], strict=True)])
    result = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "environment": report.environment(args.device),
        "parameters": sum(p.numel() for p in pair.parameters()),
        "losses_on_one_seed": losses,
        "words_per_second": {name: timing.quartiles(found) for name, found in rates.items()},
        "ratio_to_by_hand": ratio,
    }
    for name, found in result["words_per_second"].items():
        print(f"{name:8} {found['median']:9,.0f} words per second [{found['q1']:,.0f}, {found['q3']:,.0f}]")
    print(f"ratio    {ratio['median']:9.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}]")
    print(f"written: {report.write_json(result, args.out / f'text_time_{args.device}.json')}")


def check_equal(pair: TextVAE, by_hand: ByHand, x: Tensor) -> dict[str, float]:
    """The losses of both on one seed.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    found = {}
    for name, loss in {"ppl_vae": TraceMeanField_ELBO()(pair), "by hand": by_hand}.items():
        torch.manual_seed(1)
        found[name] = loss(x).item()
    if abs(found["ppl_vae"] / found["by hand"] - 1) > 1e-5:
        raise RuntimeError(f"got losses {found}, expected the same of the same weights and noise")
    return found


def our_step(pair: TextVAE) -> Step:
    svi = SVI(pair, torch.optim.Adam(pair.parameters(), fused=True), TraceMeanField_ELBO(), compile="auto")
    return svi.update


def their_step(model: ByHand) -> Step:
    optim = torch.optim.Adam(model.parameters(), fused=True)

    def step(x: Tensor) -> Tensor:
        optim.zero_grad(set_to_none=True)
        loss = model(x)
        loss.backward()
        optim.step()
        return loss.detach()

    return step


def words_per_second(step: Step, batches: list[Tensor], args: argparse.Namespace) -> float:
    """Over a block of steps, real words alone counted."""
    words, loss = sum(int((x != 0).sum()) for x in batches) * args.steps, torch.zeros(())
    begin = time.perf_counter()
    for _ in range(args.steps):
        for x in batches:
            loss = step(x)
    loss.item()  # waits for the device
    return words / (time.perf_counter() - begin)


def sentences(width: int, args: argparse.Namespace) -> Tensor:
    """Random words of lengths up to the width, each row with its end mark."""
    x = torch.randint(3, args.vocabulary, (args.batch, width))
    length = torch.randint(width - 4, width + 1, (args.batch, 1))
    place = torch.arange(width)
    return torch.where(place < length - 1, x, (place == length - 1).long())


def _linears(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--latent-dim", type=int, default=32)
    parser.add_argument("--embedding", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1, help="on each of the batches, in a block")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
