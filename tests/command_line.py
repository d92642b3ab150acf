"""A case of the command line, how it ends, and what is wrong with that."""

import contextlib
import functools
import io
import json
import os
import re
import shlex
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ppl_vae import cli, comparison, training

LOG = os.environ.get("PPL_VAE_FUZZ_LOG")
SECONDS = 60
FORM = r"\bgot .*\bexpected .*; (?!expected)"
"""Of a message: what was got, what is expected; what to do."""


def run(*words: str) -> None:
    """`ppl-vae` with these words, in this process."""
    cli.main(list(words))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which `ppl-vae` refuses these words."""
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "got" in message and "expected" in message
    return message


@dataclass(frozen=True)
class Case:
    """What is given to the program: words, files (path -> content), and whether it must be refused, with mentions."""

    words: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    bad: bool = False
    mentions: tuple[tuple[str, ...], ...] = ()  # where `bad`, the message must hold one of each of these


@dataclass(frozen=True)
class Outcome:
    """How the program ended: its exit status, or the exception that came through, with its place."""

    status: int | str
    message: str  # stderr, after all warnings
    left: tuple[str, ...]  # paths that were made, changed or removed
    late: bool  # whether a training had been completed


class TooLong(BaseException):
    """A case took more than its time; not an Exception, so that nothing on the way can catch it."""


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """Within, time is limited, and the list grows by one for each training that was completed."""
    done: list[int] = []

    def stop(*_: Any) -> None:
        raise TooLong(f"more than {SECONDS} s")

    def counted(fit: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        history = fit(*args, **kwargs)
        done.append(1)
        return history

    has_alarm = hasattr(signal, "SIGALRM")
    before = signal.signal(signal.SIGALRM, stop) if has_alarm else None
    with pytest.MonkeyPatch.context() as patch:
        for module in (training, comparison):
            patch.setattr(module, "fit", functools.partial(counted, module.fit))
        try:
            if has_alarm:
                signal.alarm(SECONDS)
            yield done
        finally:
            if has_alarm:
                signal.alarm(0)
                signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Path -> content (None for a folder) of all that is in a folder; Python's own caches do not count."""
    paths = (p for p in folder.rglob("*") if "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes() for p in paths}


def outcome(case: Case) -> Outcome:
    """Run a case in a fresh folder, three levels deep, so that `..` is a place of its own too."""
    status, message, trainings = 0, io.StringIO(), list[int]()
    with tempfile.TemporaryDirectory() as top:
        here = Path(top) / "above" / "here"
        for path, content in {"../kept.txt": b"kept", "kept.txt": b"kept", **case.files}.items():
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            (here / path).write_bytes(content)
        before = snapshot(Path(top))
        with (
            contextlib.chdir(here),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(message),
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("default")  # as for a user; the tests' settings make errors of them
            for hidden in (ResourceWarning, DeprecationWarning, PendingDeprecationWarning):
                warnings.simplefilter("ignore", hidden)
            try:
                with watched() as trainings:
                    cli.main(list(case.words))
            except SystemExit as stopped:
                status = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
            except BaseException as error:  # also what a user's file raises
                if isinstance(error, KeyboardInterrupt):
                    raise
                status = f"{type(error).__name__}: {str(error)[:200]} at {_place(error)}"
        after = snapshot(Path(top)) if Path(top).exists() else {}
    left = sorted(p for p in before.keys() | after.keys() if before.get(p, ...) != after.get(p, ...))
    text = "".join(warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in warned)
    return Outcome(status, text + message.getvalue(), tuple(left), bool(trainings))


def _place(error: BaseException) -> str:
    """The deepest line of this library in a traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "ppl_vae" in Path(f.filename).parts]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the parser"


def problems(case: Case, got: Outcome) -> list[str]:
    """What is wrong with an outcome; nothing for a success or one clear error."""
    if got.status == 0:
        return ["accepted what must be refused"] if case.bad else []
    if got.status != 2:
        return [f"ended with {got.status}"]
    text = got.message.strip()
    starts = [m.end() for m in re.finditer(r"^ppl-vae: error: ", text, re.M)]
    # A run that has begun keeps what it has when it fails.
    has_begun = "expected a finite number; " in text
    # What is too much for memory is known when it is tried.
    may_be_late = "error: got not enough memory" in text
    checks = {
        f"not one message of one line: {text!r}": len(starts) == 1 and "\n" not in text,
        f"doesn't say what was got, what is expected and what to do: {text!r}": bool(re.search(FORM, text)),
        "a traceback in the message": "Traceback" not in text,
        # It is to run what the file holds.
        f"hands on torch's advice: {text[:300]!r}": "\x1b" not in text and "weights_only" not in text,
        f"left behind: {got.left[:5]}": not got.left or (has_begun and not case.bad),
        f"doesn't hold one of each of {case.mentions}: {text!r}": not case.bad
        or may_be_late
        or all(any(way in text for way in ways) for ways in case.mentions),
        f"refused only after the training: {text!r}": not (case.bad and got.late) or may_be_late,
    }
    return [problem for problem, is_fine in checks.items() if not is_fine]


def check(case: Case) -> None:
    """Run a case and fail where it has a problem."""
    got = outcome(case)
    found, files = problems(case, got), {n: repr(t[:300]) for n, t in case.files.items() if not n.endswith(".py")}
    if LOG:
        with Path(LOG).open("a") as file:
            file.write(json.dumps({**asdict(case), "files": files, **asdict(got), "problems": found}) + "\n")
    assert not found, f"{'; '.join(found)[:1000]}\n  ppl-vae {shlex.join(case.words)[:1000]}\n  {files}"
