"""What a published table did: its data, schedule and rows, read from a YAML file."""

import math
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

import jsonargparse
import yaml

from ppl_vae import rates, specs
from ppl_vae.data import Binarisation
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.reproduction.errors import ErrorProtocol
from ppl_vae.reproduction.rows import check_names, chosen

__all__ = ["Protocol", "Published", "Row", "load_protocol", "protocol_names"]


@dataclass(frozen=True)
class Published:
    """Figures of a row as printed somewhere.

    Args:
        nll: -log p(x) in nats per datum.
        active_units: of each latent site, bottom to top.
    """

    nll: float | None = None
    active_units: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        name: of the row.
        pair, objective: as texts (see `ppl_vae.specs`); None where `same_as` is given.
        method: "svi", or "mcem", Monte Carlo EM (see `ppl_vae.mcem`), which has no objective.
        same_as: the row whose run is this row's too: an IWAE with one particle is the VAE.
        start: the row whose end, weights and optimiser, this one begins with.
        passes, schedule, num_train: other than the protocol's.
        warmup: passes over which the weight of the KL terms rises from 0 to 1.
        absent: why there is no run of this row: "not applicable", say; it has no pair.
        on_request: left out unless it is named.
        versus: rows that this one is compared with, by the difference of their NLLs.
        published: by the authors.
        independent: by someone who ran it again.
    """

    name: str
    pair: str | None = None
    objective: str | None = None
    method: Literal["svi", "mcem"] = "svi"
    same_as: str | None = None
    start: str | None = None
    passes: float | None = None
    schedule: str | None = None
    num_train: int | None = None
    warmup: float | None = None
    absent: str | None = None
    on_request: bool = False
    versus: list[str] = field(default_factory=list)
    published: Published = field(default_factory=Published)
    independent: Published = field(default_factory=Published)

    @property
    def has_run(self) -> bool:
        """Whether it is trained itself."""
        return self.same_as is None and self.absent is None


@dataclass(frozen=True)
class Protocol:
    """How the rows of a table are trained and evaluated.

    Args:
        title: of the table.
        source: where it was published.
        data: name of the data set.
        rows: of the table.
        passes: over the data, in all.
        batch_size: data per step.
        binarisation: of the data; its usual one by default.
        num_train: the first so many training data; all by default.
        schedule: of the learning rate, as a text (see `rates.parse`).
        learning_rate, betas, eps: of Adam.
        weight_precision: of a prior p(theta) = N(0, I / precision) of all parameters, those of the guide too: weight
            decay. None by default.
        num_particles: K of the NLL.
        estimator: of log p(x): "guide", importance sampling from the guide; or "prior", draws from the model alone,
            for few latent variables: the same for rows with and without a guide.
        rehearsal_particles, rehearsal_test: K, and the first so many test data, where a fraction of the protocol runs.
        test_curve, kl_curve: also follow the bound, or the KL term of each layer, on the test data while training (on
            the first `rehearsal_test` of them). Where the estimator is "prior", it is log p(x) that is followed.
        train_curve: follow it on as many of the row's training data, too.
        independent_source: where the independent figures come from.
        deviations: from what was published.

    Raises:
        ValueError: rows of one name, without a pair, or that refer to rows that are not there; a text that can't be
            read; a number out of its range.
    """

    title: str
    source: str
    data: str
    rows: list[Row]
    passes: float
    batch_size: int = 100
    binarisation: Binarisation | None = None
    num_train: int | None = None
    schedule: str = "constant"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_precision: float = 0.0
    num_particles: int = 5000
    estimator: Literal["guide", "prior"] = "guide"
    rehearsal_particles: int = 500
    rehearsal_test: int = 1000
    test_curve: bool = False
    train_curve: bool = False
    kl_curve: bool = False
    independent_source: str = ""
    deviations: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_particles", "rehearsal_particles", "rehearsal_test"):
            require_positive(name, getattr(self, name))
        if self.num_train is not None:
            require_positive("num_train", self.num_train)
        for name in ("passes", "learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a finite number above 0; 1e-3, say")
        if not 0 <= self.weight_precision < math.inf:
            raise ValueError(f"weight_precision: got {self.weight_precision}, expected a finite number, 0 or more")
        check_names(self.rows)
        own = {row.name for row in self.rows if row.has_run}
        begun = {row.name for row in self.rows if row.start is not None}
        for row in self.rows:
            if unknown := {*row.versus, *filter(None, [row.same_as])} - own:
                raise ValueError(f"row {row.name!r}: got {sorted(unknown)}, expected names of rows with a run: {own}")
            if row.start is not None and row.start not in own - begun:
                raise ValueError(f"row {row.name!r}: got start {row.start!r}, expected a row that starts afresh")
            if row.has_run:
                specs.pair_factory(str(row.pair))
                if row.method == "svi":
                    specs.make_objective(str(row.objective))
            if row.num_train is not None:
                require_positive(f"row {row.name!r}: num_train", row.num_train)
            if row.warmup is not None and not 0 < row.warmup < math.inf:
                raise ValueError(f"row {row.name!r}: got warmup {row.warmup}, expected passes, above 0; leave it out")
            rates.parse(row.schedule or self.schedule, steps=1, steps_per_pass=1)

    def chosen(self, names: list[str] | None) -> list[Row]:
        """Rows by name, or number from 1, with those whose runs they need; all but those on request by default.

        Raises:
            ValueError: there is no such row.
        """
        return chosen(self.rows, names)


def protocol_names() -> list[str]:
    """The protocols that come with the library."""
    found = resources.files("ppl_vae").joinpath("protocols").iterdir()
    return sorted(path.name.removesuffix(".yaml") for path in found if path.name.endswith(".yaml"))


def load_protocol(name: str) -> Protocol | ErrorProtocol:
    """A protocol of the library, or the one of a YAML file; of error rates, where its rows have ways.

    Raises:
        ValueError: there is none of this name, or the file doesn't hold one.
    """
    is_ours = name in protocol_names()
    path = resources.files("ppl_vae").joinpath("protocols", f"{name}.yaml") if is_ours else Path(name)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    try:
        text = path.read_text(encoding="utf-8")
        kind = ErrorProtocol if _has_ways(text) else Protocol
        parser.add_class_arguments(kind, None)
        return kind(**vars(parser.instantiate(parser.parse_string(text))))
    except OSError as error:
        known = ", ".join(protocol_names())
        raise ValueError(
            f"table: got {name!r} ({error.strerror}), expected one of {known}, or a YAML file; check the spelling"
        ) from error
    # Besides its own errors: the parser takes some values for what they are not.
    except (jsonargparse.ArgumentError, ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).rstrip(".").split())
        raise ValueError(
            f"table: got {name!r} ({reason}), expected a protocol; compare it with the library's"
        ) from error


def _has_ways(text: str) -> bool:
    """Whether the rows of a protocol say in which way they train a classifier; a text that is none hasn't."""
    try:
        rows = yaml.safe_load(text)["rows"]
        return any("way" in row for row in rows)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        return False
