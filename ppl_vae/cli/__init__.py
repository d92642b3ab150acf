"""The command line: `ppl-vae compare | train | reproduce | evaluate | sample | reconstruct | manifold | list`."""

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import jsonargparse

from ppl_vae.checkpoints import DISK_FULL
from ppl_vae.cli.compare import compare
from ppl_vae.cli.inspection import evaluate, list_names, manifold, reconstruct, sample
from ppl_vae.cli.reproduce import reproduce
from ppl_vae.cli.train import train
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.parallel import leave
from ppl_vae.runs import CONFIG, folder_of
from ppl_vae.signals import Stopped
from ppl_vae.specs import is_out_of_memory

__all__ = ["main"]

COMMANDS: Mapping[str, Callable[..., None]] = {
    "compare": compare,
    "train": train,
    "reproduce": reproduce,
    "evaluate": evaluate,
    "sample": sample,
    "reconstruct": reconstruct,
    "manifold": manifold,
    "list": list_names,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `ppl-vae`. Exit status 2 for anything that the user can mend, 128 + a signal that stopped it."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _parsed(words)()
        leave()
    except OSError as error:
        _refuse(_with_advice(error), words)
    except (ValueError, NonFiniteError) as error:
        _refuse(error, words)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        _refuse(
            f"not enough memory ({reason}); use a smaller pair, fewer particles or fewer data: got {_said(words)}",
            words,
        )
    except Stopped as stopped:
        how = "the same command" if words[:1] == ["reproduce"] else "ppl-vae train --resume and the run's folder"
        print(f"ppl-vae: {stopped}; go on with {how}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        print("ppl-vae: interrupted; a run with checkpoints goes on with ppl-vae train --resume", file=sys.stderr)
        sys.exit(130)


def _refuse(error: object, words: Sequence[str]) -> NoReturn:
    """End with one line that says, if nothing else, where to read on."""
    message = " ".join(line.strip() for line in str(error).splitlines())
    advice = "" if "; " in message else f"; see ppl-vae{_command(words)} --help"
    print(f"ppl-vae: error: {message.rstrip('.')}{advice}", file=sys.stderr)
    sys.exit(2)


def _with_advice(error: OSError) -> str:
    if error.errno in DISK_FULL:
        advice = "free some space; a run goes on with ppl-vae train --resume and its folder"
        return f"got '{error.strerror}', expected room for results; {advice}"
    return f"{error}; check the path and its permissions" if error.filename else str(error)


def _said(words: Sequence[str]) -> str:
    said = shlex.join(words)
    return said if len(said) <= 300 else f"{said[:300]}..."


def _parsed(words: Sequence[str]) -> Callable[[], None]:
    """The command that the words ask for, with its options, yet to be run.

    Raises:
        ValueError: options that can't be read, or null where a value is needed.
    """
    chosen: list[Callable[[], None]] = []

    def kept(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def keep(**options: Any) -> None:
            _check_nulls(command, options)
            chosen.append(functools.partial(command, **options))

        return keep

    commands: dict[str, Any] = {name: kept(command) for name, command in COMMANDS.items()}
    try:
        jsonargparse.auto_cli(commands, args=_options(words), as_positional=True, exit_on_error=False)
    except argparse.ArgumentError as error:
        said = str(error).strip()
        # Of words that are empty the parser says nothing behind its colon.
        raise ValueError(f"{said} got {_said(words)}" if said.endswith(":") else said) from error
    except (AttributeError, TypeError, OverflowError, RecursionError, UnicodeDecodeError) as error:
        # The parser takes some values in a configuration for what they are not; no command has run yet.
        raise ValueError(
            f"got a configuration or an option that can't be read ({error}), expected plain values as in a run's "
            f"config.yaml: {_said(words)}"
        ) from error
    return chosen[0]


def _check_nulls(command: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Refuse null for what has no such value: the parser lets it through."""
    hints = get_type_hints(command)
    for name, value in options.items():
        if value is None and type(None) not in get_args(hints[name]):
            raise ValueError(f"{name}: got null, expected a value; leave it out for the default")


def _with_config(words: list[str]) -> list[str]:
    """`train --resume RUN` takes its settings from RUN's configuration."""
    if words[:1] != ["train"]:
        return words
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--resume" and (equals or words[index + 1 :]):
            config = folder_of(value if equals else words[index + 1]) / CONFIG
            if config.is_file():  # if not, `train` says so
                _check_whole(config)
                return ["train", f"--config={config}", *words[1:]]
    return words


def _check_whole(config: Path) -> None:
    """Refuse settings that end too early: what is missing would be the default, and the run another one."""
    end = config.read_bytes()[-4:]
    if end != b"...\n":
        raise ValueError(
            f"resume: {config} is damaged: got an end of {end!r}, expected a last line of three points behind all "
            "settings of the run; mend it"
        )


def _options(argv: Sequence[str]) -> list[str]:
    """Options as the parser wants them: `--data-root` is `--data_root`, and compare's `--objective a --objective b`
    is `--objective+=a --objective+=b`."""
    result, rest = [], _with_config(list(argv))
    lists = ("--pair", "--objective") if rest[:1] == ["compare"] else ()
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        if name in lists and (equals or rest):
            value = value if equals else rest.pop(0)
            result.append(f"{name}={value}" if value.startswith("[") else f"{name}+={value}")
        else:
            result.append(name + equals + value)
    return result


def _command(words: Sequence[str]) -> str:
    """The command among the words, with a space before it; nothing where there is none."""
    return next((f" {word}" for word in words if word in COMMANDS), "")
