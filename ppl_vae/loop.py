"""What `fit` does between its first step and its last: record, validate, save, stop early, stop when asked."""

import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from tqdm import tqdm

from ppl_vae.averages import WeightAverage
from ppl_vae.checkpoints import Checkpoints, read
from ppl_vae.lagging import AggressiveGuide
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.records import History, Record, every
from ppl_vae.signals import Stop, Stopped
from ppl_vae.steps import Steps
from ppl_vae.validation import Validation

__all__ = ["Loop", "Saver", "check_settings", "saver_of"]

BARREN = 20
"""So many steps in a row that were all skipped end a run."""

SHARE, SHORTEST = 200, 30.0
"""Without a number of steps: a checkpoint after so many times the seconds that one takes, and after so many seconds."""


class Saver:
    """Says when a checkpoint is due, and writes it.

    Args:
        checkpoints: where to.
        every: after so many steps; None goes by the clock, so that checkpoints take under one percent of the time.
    """

    def __init__(self, checkpoints: Checkpoints, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"checkpoint_every: got {every}, expected at least 1")
        self.checkpoints, self.every = checkpoints, every
        self._due = time.monotonic() + SHORTEST

    def is_due(self, step: int) -> bool:
        """Whether to save after this step."""
        return time.monotonic() >= self._due if self.every is None else step % self.every == 0

    def save(self, state: dict[str, Any], step: int) -> None:
        """Write a checkpoint."""
        start = time.monotonic()
        self.checkpoints.save(state, step)
        end = time.monotonic()
        self._due = end + max(SHORTEST, SHARE * (end - start))


def saver_of(
    folder: str | Path | None, every: int | None, resume: bool | str | Path
) -> tuple[Saver | None, dict[str, Any] | None]:
    """What writes checkpoints, and the state to go on from."""
    if folder is None:
        if resume:
            raise ValueError("resume: got no checkpoints, expected checkpoints=FOLDER of the run's first part")
        return None, None
    kept = Checkpoints(folder)
    if not resume:
        if newest := kept.newest():
            raise ValueError(
                f"checkpoints: got {folder} with {newest.name} of an earlier run, expected an empty folder; "
                "go on with resume=True, or choose another"
            )
        return Saver(kept, every), None
    if isinstance(resume, bool):
        return Saver(kept, every), kept.load() if kept.newest() else None
    return Saver(kept, every), read(resume)


@dataclass
class Loop:
    """Takes the steps of a run.

    Args:
        steps: takes them.
        number: of steps, in all.
        settings: plain values that a resumed run must share.
        history: filled.
        bar: shows how it goes.
        validation, average, saver, aggressive: where wanted.
        on_step: called with the number of steps taken, after each (captured: after each launch).
        on_record: called with each point of the learning curve.
    """

    steps: Steps
    number: int
    settings: dict[str, Any]
    history: History
    bar: "tqdm[Any]"
    validation: Validation | None = None
    average: WeightAverage | None = None
    saver: Saver | None = None
    aggressive: AggressiveGuide | None = None
    on_step: Callable[[int], object] | None = None
    on_record: Callable[[Record], object] | None = None

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.steps.svi.objective.step

    @property
    def is_over(self) -> bool:
        """Whether all steps are taken, or validation has ended the run early."""
        return self.done >= self.number or (self.validation is not None and self.validation.is_over)

    def run(self) -> None:
        """Take all steps.

        Raises:
            Stopped: SIGINT or SIGTERM came while checkpoints are kept; one has been written.
            NonFiniteError: see `SVI.update`; or 20 steps in a row, or more, were skipped.
            CheckpointError: a checkpoint could not be written.
        """
        self._begin, self._last_saved = time.perf_counter() - self.history.seconds, self.done
        self._asked = self._due = False
        with Stop() if self.saver else nullcontext(Stop()) as stop:
            while not self.is_over:
                goal = min(self.number, (self.done // every(self.number) + 1) * every(self.number))
                before = self.done
                self.steps.take(goal - before, lambda: self._after_step(stop))
                self.bar.update(self.done - before)
                if self.done == goal:
                    self._record()
                if self._asked or self._due or self.is_over:
                    self._save()
                if self._asked and not self.is_over:
                    raise Stopped(self.done, stop.requested or signal.SIGTERM)
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """The whole state of the run."""
        return {
            "settings": self.settings,
            "pair": self.steps.svi.pair.state_dict(),
            "steps": self.steps.state_dict(),
            "history": [asdict(record) for record in self.history.records],
            "seconds": self._seconds(),
            "resumed": list(self.history.resumed),
            "validation": self.validation and self.validation.state_dict(),
            "average": self.average and self.average.state_dict(),
            "aggressive": self.aggressive and self.aggressive.state_dict(),
            "schedule": _state_of(self.steps.schedule),
            "random": self.steps.svi.ranks.gather(_random(self.steps.svi.pair.reference().device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the source of `state` stood.

        Raises:
            ValueError: that run had other settings, another pair, optimiser or data.
        """
        check_settings(self.settings, state["settings"])
        pair = self.steps.svi.pair
        try:
            pair.load_state_dict(state["pair"])
        except RuntimeError as error:
            raise ValueError(f"resume: the checkpoint is not of this {type(pair).__name__}: {error}") from error
        self.steps.load_state_dict(state["steps"])
        self.history.records[:] = [Record(**record) for record in state["history"]]
        self.history.seconds, self.history.resumed = state["seconds"], [*state["resumed"], self.done]
        for kept in ("validation", "average", "aggressive"):
            if (part := getattr(self, kept)) is not None:
                part.load_state_dict(state[kept])
        if callable(load := getattr(self.steps.schedule, "load_state_dict", None)):
            load(state["schedule"])
        ranks = self.steps.svi.ranks
        if len(state["random"]) == ranks.size:
            _set_random(state["random"][ranks.rank], pair.reference().device)
        else:  # with another number of ranks: fresh noise
            pyro.set_rng_seed((ranks.seed(self.settings["seed"]) + self.done) % 2**32)
        self.bar.update(self.done)

    def _after_step(self, stop: Stop) -> bool:
        """Call back; whether the loop has something to do before the next step."""
        if self.on_step is not None:
            self.on_step(self.done)
        self._asked, self._due = self.steps.svi.ranks.agree((stop.requested is not None, self._is_due()))
        return self._asked or self._due

    def _is_due(self) -> bool:
        return self.saver is not None and self.done > self._last_saved and self.saver.is_due(self.done)

    def _seconds(self) -> float:
        return time.perf_counter() - self._begin

    def _record(self) -> None:
        svi, last = self.steps.svi, self.history.records[-1] if self.history.records else Record(0, 0.0, 0.0)
        loss, skipped = self.steps.collect(), int(svi.skipped)
        counted = self.done - last.step - (skipped - last.skipped)
        if counted == 0:
            if self.done - last.step < BARREN:
                return
            raise NonFiniteError(
                f"step {self.done}: all of the last {self.done - last.step} steps were skipped, for a loss or a "
                "gradient that was not finite; expected some that are; try a smaller learning rate, or "
                "on_nonfinite='stop' to see the first cause"
            )
        rows = self.steps.batches.batch_size
        norm = svi.norm() if svi.gradient_norm is None else svi.gradient_norm
        rate = float(svi.optim.param_groups[0]["lr"])
        with self.average.applied() if self.average else nullcontext():
            valid = self.validation and self.validation.measure(svi)
            together = self.validation and self.validation.aggregate(svi.pair)
        record = Record(self.done, -loss / (counted * rows), self._seconds(), norm.item(), rate, skipped, valid)
        if together is not None:
            record = replace(record, **asdict(together))
            if self.aggressive is not None:
                self.aggressive.observe(together.mutual_information)
        self.history.records.append(record)
        if callable(observe := getattr(self.steps.schedule, "observe", None)):
            observe(record.bound if valid is None else valid)
        self.bar.set_postfix_str(_progress(record), refresh=False)
        if self.on_record is not None:
            self.on_record(record)

    def _save(self) -> None:
        if self.saver is not None and self.done > self._last_saved:
            self._check_weights()
            state = self.state_dict()
            if self.steps.svi.ranks.is_first:
                self.saver.save(state, self.done)
            self._last_saved, self._due = self.done, False

    def _check_weights(self) -> None:
        """Keep weights out of a checkpoint that an overflowing gradient has spoilt, which the next loss would show."""
        svi = self.steps.svi
        if not all(bool(p.isfinite().all()) for p in svi.pair.parameters()):
            svi.refuse(torch.tensor(math.nan), *self.steps.batches.again())

    def _finish(self) -> None:
        """Give the pair the weights that the run was for, and complete the history."""
        if self.average is not None:
            self.average.write()
        if self.validation is not None and self.validation.weights is not None:
            self.steps.svi.pair.load_state_dict(self.validation.weights)
            self.history.best = self.validation.step
        self.history.finish(self.done, self._seconds())


def check_settings(settings: dict[str, Any], before: dict[str, Any]) -> None:
    """Refuse to go on with other settings than those of the first part of a run.

    Raises:
        ValueError: they differ.
    """
    differ = [k for k, v in settings.items() if before.get(k) != v]
    if differ:
        got, expected = ({k: s.get(k) for k in differ} for s in (settings, before))
        raise ValueError(f"resume: got {got}, expected {expected}, the settings of its first part; use those")


def _random(device: torch.device) -> dict[str, Any]:
    """The states of all random streams, as plain values and tensors."""
    state = get_rng_state()
    kind, keys, *rest = state["numpy"]
    return {
        "torch": state["torch"],
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": state["random"],
        "numpy": (kind, torch.from_numpy(keys.astype("int64")), *rest),
    }


def _set_random(state: dict[str, Any], device: torch.device) -> None:
    kind, keys, *rest = state["numpy"]
    numpy = (kind, keys.numpy().astype("uint32"), *rest)
    set_rng_state({"torch": state["torch"].clone(), "random": state["python"], "numpy": numpy})
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def _progress(record: Record) -> str:
    valid = "" if record.valid is None else f", valid {record.valid:.2f}"
    if record.kl is not None:
        valid += f" (KL {record.kl:.2f}, I {record.mutual_information:.2f}, {record.active_units} active)"
    skipped = f", {record.skipped} skipped" if record.skipped else ""
    return f"bound {record.bound:.2f}{valid} nats, gradient {record.gradient_norm:.3g}{skipped}"


def _state_of(schedule: object) -> Any:
    state_dict = getattr(schedule, "state_dict", None)
    return state_dict() if callable(state_dict) else None
