"""The command line.

`ppl-vae compare | train | reproduce | evaluate | sample | reconstruct | complete | manifold | paint | text |
list`.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from ppl_vae.checkpoints import DISK_FULL
from ppl_vae.cli.compare import compare
from ppl_vae.cli.inspection import complete, evaluate, list_names, manifold, reconstruct, sample
from ppl_vae.cli.paint import paint
from ppl_vae.cli.parsing import advice, parsed, said
from ppl_vae.cli.reproduce import reproduce
from ppl_vae.cli.text import text
from ppl_vae.cli.train import train
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.parallel import leave
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
    "complete": complete,
    "manifold": manifold,
    "paint": paint,
    "text": text,
    "list": list_names,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `ppl-vae`. Exit status 2 for anything that the user can mend, 128 + a signal that stopped it."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed(words, COMMANDS)()
        leave()
    except OSError as error:
        _refuse(_with_advice(error), words)
    except (ValueError, NonFiniteError) as error:
        _refuse(error, words)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = "use a smaller pair, fewer particles or fewer data"
        _refuse(f"got not enough memory ({reason}), expected enough for {said(words)}; {remedy}", words)
    except Stopped as stopped:
        how = "the same command" if words[:1] == ["reproduce"] else "ppl-vae train --resume and the run's folder"
        print(f"ppl-vae: {stopped}; go on with {how}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        print("ppl-vae: interrupted; a run with checkpoints goes on with ppl-vae train --resume", file=sys.stderr)
        sys.exit(130)


def _refuse(error: object, words: Sequence[str]) -> NoReturn:
    """End with one line that also says what to do."""
    message = " ".join(line.strip() for line in str(error).splitlines()).rstrip(".")
    has_advice = re.search("; (?!expected)", message)
    print(f"ppl-vae: error: {message}{'' if has_advice else f'; {advice(message, words, COMMANDS)}'}", file=sys.stderr)
    sys.exit(2)


def _with_advice(error: OSError) -> str:
    if error.errno in DISK_FULL:
        remedy = "free some space; a run goes on with ppl-vae train --resume and its folder"
        return f"got '{error.strerror}', expected room for results; {remedy}"
    if not error.filename:
        return str(error)
    remedy = "check the path and its permissions"
    return f"got '{error.strerror}' for {str(error.filename)!r}, expected a path that can be read and written; {remedy}"
