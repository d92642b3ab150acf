"""The command line: `ppl-vae compare | train | evaluate | sample | reconstruct | manifold | list`."""

import sys
from collections.abc import Sequence
from typing import Any

import jsonargparse

from ppl_vae.cli.compare import compare
from ppl_vae.cli.inspection import evaluate, list_names, manifold, reconstruct, sample
from ppl_vae.cli.train import train
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.runs import CONFIG, folder_of
from ppl_vae.signals import Stopped

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `ppl-vae`. Exit status 2 for anything that the user can mend, 128 + a signal that stopped it."""
    commands: dict[str, Any] = {
        "compare": compare,
        "train": train,
        "evaluate": evaluate,
        "sample": sample,
        "reconstruct": reconstruct,
        "manifold": manifold,
        "list": list_names,
    }
    try:
        jsonargparse.auto_cli(commands, args=_options(sys.argv[1:] if argv is None else argv), as_positional=True)
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"ppl-vae: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"ppl-vae: {stopped}; go on with ppl-vae train --resume and the run's folder", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        print("ppl-vae: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


def _with_config(words: list[str]) -> list[str]:
    """`train --resume RUN` takes its settings from RUN's configuration."""
    if words[:1] != ["train"]:
        return words
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--resume" and (equals or words[index + 1 :]):
            config = folder_of(value if equals else words[index + 1]) / CONFIG
            if config.is_file():  # if not, `train` says so
                return ["train", f"--config={config}", *words[1:]]
    return words


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
