"""A comparison as text."""

import math
import statistics
from collections.abc import Sequence

from ppl_vae.comparison import Comparison, Row

__all__ = ["comparison_table", "layers_table"]


def comparison_table(comparison: Comparison) -> str:
    """One line for each pair and objective, best NLL first within a pair; then the paired differences."""
    order = comparison.config["pairs"]
    rows = sorted(comparison.rows, key=lambda r: (order.index(r.pair), r.nll))
    head = ["pair", "objective", "NLL (s.e.)", "active units", "bound", "ESS", "SNR model, guide", "ms/step"]
    body = [[r.pair, r.objective, _nll(r), _units(r), f"{r.bound:.2f}", f"{r.ess:.0f}", _snr(r), _ms(r)] for r in rows]
    versus = [
        f"{d.pair}: NLL({d.objective}) - NLL({d.baseline}) = {_signed(d.nats, d.standard_error)} nats"
        for d in comparison.differences()
    ]
    return "\n".join([_aligned([head, *body]), *([""] if versus else []), *versus])


def layers_table(comparison: Comparison) -> str:
    """The layout of Burda et al. 2015, table 1: stochastic layers and k down, VAE and IWAE across.

    Only for comparisons whose objectives are `elbo:k` and `iwae:k`. For k = 1 the two are the same
    objective: where one of them was run, it fills both columns.
    """
    cells = {(r.pair, r.objective): r for r in comparison.rows}
    counts = sorted({o["num_particles"] for o in comparison.config["objectives"].values()})
    head = ["layers", "k"]
    for name in ("VAE", "IWAE"):
        head += [f"{name} NLL (s.e.)", "active", "ESS", "ms/step"]
    body = []
    for pair in comparison.config["pairs"]:
        for k in counts:
            vae, iwae = cells.get((pair, f"elbo:{k}")), cells.get((pair, f"iwae:{k}"))
            if k == 1:
                vae, iwae = vae or iwae, iwae or vae
            gap = _gap(comparison, pair, k) if vae is not iwae else ""
            if (row := vae or iwae) is not None:
                body.append([str(len(row.active_units)), str(k), *_cell(vae), *_cell(iwae), gap])
    return _aligned([[*head, "IWAE - VAE (s.e.)"], *body])


def _cell(row: Row | None) -> list[str]:
    return ["-"] * 4 if row is None else [_nll(row), _units(row), f"{row.ess:.0f}", _ms(row)]


def _gap(comparison: Comparison, pair: str, k: int) -> str:
    nll = {(r.objective, r.seed): r.evaluation.nll for r in comparison.runs if r.pair == pair}
    seeds = sorted({seed for _, seed in nll})
    gaps = [
        nll[f"iwae:{k}", s] - nll[f"elbo:{k}", s] for s in seeds if (f"iwae:{k}", s) in nll and (f"elbo:{k}", s) in nll
    ]
    if not gaps:
        return ""
    return _signed(statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan)


def _signed(nats: float, error: float) -> str:
    return f"{nats:+.2f}" if math.isnan(error) else f"{nats:+.2f} ({error:.2f})"


def _nll(row: Row) -> str:
    return f"{row.nll:.2f} ({row.nll_se:.2f})"


def _snr(row: Row) -> str:
    return "-" if math.isnan(row.snr_model) else f"{row.snr_model:.2f}, {row.snr_guide:.2f}"


def _ms(row: Row) -> str:
    return f"{row.ms_per_step:.2f}"


def _units(row: Row) -> str:
    """Active units of the layers, bottom to top: 16+5."""
    return "+".join(f"{units:.0f}" for units in row.active_units) or "-"


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
