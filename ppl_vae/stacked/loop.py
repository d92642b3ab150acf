"""What `fit_stacked` does between its first step and its last: record, save, stop when asked."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from ppl_vae.loop import Saver, check_settings
from ppl_vae.records import History, Record, every
from ppl_vae.signals import Stop, Stopped
from ppl_vae.stacked.steps import StackedSteps

__all__ = ["StackedLoop"]


@dataclass
class StackedLoop:
    """Takes the steps of S runs.

    Args:
        steps: takes them.
        number: of steps, in all.
        settings: plain values that a resumed run must share.
        histories: of each run, filled.
        bar: shows how it goes.
        saver: where checkpoints are wanted.
        on_record: called with s and each point of the learning curve of run s, whose pair has its weights then.
    """

    steps: StackedSteps
    number: int
    settings: dict[str, Any]
    histories: Sequence[History]
    bar: "tqdm[Any]"
    saver: Saver | None = None
    on_record: Callable[[int, Record], object] | None = None

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.steps.objective.step

    def run(self) -> None:
        """Take all steps.

        Raises:
            Stopped: SIGINT or SIGTERM came while checkpoints are kept; one has been written.
            NonFiniteError: a loss is NaN or infinite.
            CheckpointError: a checkpoint could not be written.
        """
        self._begin, self._last_saved = time.perf_counter() - self.histories[0].seconds, self.done
        with Stop() if self.saver else nullcontext(Stop()) as stop:
            while self.done < self.number:
                before = self.done
                self.steps.take()
                self.bar.update(self.done - before)
                if self.done % every(self.number) == 0 or self.done == self.number:
                    self._record()
                is_over, asked = self.done == self.number, stop.requested
                if self.saver is not None and (is_over or asked is not None or self.saver.is_due(self.done)):
                    self._save(self.saver)
                if asked is not None and not is_over:
                    raise Stopped(self.done, asked)
        for history in self.histories:
            history.finish(self.done, self._seconds())

    def state_dict(self) -> dict[str, Any]:
        """The whole state of the runs."""
        return {
            "settings": self.settings,
            "steps": self.steps.state_dict(),
            "histories": [[asdict(record) for record in history.records] for history in self.histories],
            "seconds": self._seconds(),
            "resumed": list(self.histories[0].resumed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the source of `state` stood.

        Raises:
            ValueError: those runs had other settings, other pairs, another optimiser or other data.
        """
        check_settings(self.settings, state["settings"])
        self.steps.load_state_dict(state["steps"])
        for history, records in zip(self.histories, state["histories"], strict=True):
            history.records[:] = [Record(**record) for record in records]
            history.seconds, history.resumed = state["seconds"], [*state["resumed"], self.done]
        self.bar.update(self.done)

    def _seconds(self) -> float:
        return time.perf_counter() - self._begin

    def _record(self) -> None:
        last = self.histories[0].records[-1].step if self.histories[0].records else 0
        count, rate = self.done - last, float(self.steps.optim.param_groups[0]["lr"])
        totals, norms, seconds = self.steps.collect(), self.steps.norms(), self._seconds()
        if self.on_record is not None:
            self.steps.loss.write()
        for run, history in enumerate(self.histories):
            bound = -totals[run] / (count * self.steps.batches[run].batch_size)
            history.records.append(Record(self.done, bound, seconds, norms[run], rate))
            if self.on_record is not None:
                self.on_record(run, history.records[-1])

    def _save(self, saver: Saver) -> None:
        if self.done > self._last_saved:
            self.steps.check_weights()
            saver.save(self.state_dict(), self.done)
            self._last_saved = self.done
