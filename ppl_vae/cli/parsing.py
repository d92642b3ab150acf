"""Words of the command line, read by jsonargparse: a command with its options, or one error in our words."""

import argparse
import difflib
import functools
import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from ppl_vae.runs import CONFIG, folder_of

__all__ = ["advice", "parsed", "said"]

Commands = Mapping[str, Callable[..., None]]

PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def parsed(words: Sequence[str], commands: Commands) -> Callable[[], None]:
    """The command that the words ask for, with its options, yet to be run.

    Args:
        words: of the command line.
        commands: by name.

    Raises:
        ValueError: options that can't be read, or null where a value is needed.
    """
    chosen: list[tuple[Callable[..., None], dict[str, Any]]] = []

    def kept(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def keep(**options: Any) -> None:
            chosen.append((command, options))

        return keep

    parts: dict[str, Any] = {name: kept(command) for name, command in commands.items()}
    options = _options(words)
    try:
        jsonargparse.auto_cli(parts, args=options, as_positional=True, exit_on_error=False)
    # Besides its own errors: the parser takes some values in a configuration for what they are not.
    except (
        argparse.ArgumentError, ValueError, AttributeError, TypeError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise ValueError(_explained(str(error).strip(), words, commands)) from error
    command, given = chosen[0]
    _check_nulls(command, given)
    return functools.partial(command, **given)


def advice(message: str, words: Sequence[str], commands: Commands) -> str:
    """What to do about a message that begins with an option: the words that document it, or where they are."""
    name, command = re.split(r"\W", message, maxsplit=1)[0], _command(words, commands)
    if command is not None and name in (options := inspect.signature(command).parameters):
        documented = docstring_parser.parse(command.__doc__ or "").params
        meaning = next((p.description for p in documented if p.arg_name == name), None) or ""
        option = name if options[name].default is inspect.Parameter.empty else f"--{name}"
        return f"change {option} ({' '.join(meaning.split()).rstrip('.')})"
    return f"see {_program(words, commands)} --help"


def said(words: Sequence[str]) -> str:
    """The words as one could type them, cut where they are many."""
    text = shlex.join(words)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _explained(message: str, words: Sequence[str], commands: Commands) -> str:
    """An error of the parser in our words; where it is not known, with its own."""
    command = _command(words, commands)
    if command is None:
        named = f"{words[0]!r}" if words and not words[0].startswith("-") else "no command"
        return f"got {named}, expected one of {', '.join(commands)}; see ppl-vae --help"
    hints, program = get_type_hints(command), _program(words, commands)
    if message.startswith("argument --config: expected"):
        return "config: got no value, expected a YAML file; name one"
    if found := re.match(r'Parser key "config":\s*(.*?): \'(.*)\'', message, re.S):
        return f"config: got {found[2]!r} ({found[1]}), expected a YAML file; check the path"
    if (found := re.match(r'Parser key "(\w+)":\s*(.*)', message, re.S)) and found[1] in hints:
        name, value = found[1], re.findall(r"(?:Got|Given) value:\s*(.*)", found[2], re.S)
        return f"{name}: got {_value(value[-1] if value else found[2])}, expected {_wanted(hints[name])}"
    if (found := re.match(r"argument --(\w+): expected", message)) and found[1] in hints:
        return f"{found[1]}: got no value, expected {_wanted(hints[found[1]])}"
    if found := re.match(r"the following arguments are required: \w+\.(\w+)", message):
        return f"{found[1]}: got none, expected {_wanted(hints[found[1]])}"
    unknown = re.match(r"unrecognized arguments: (.*)", message, re.S)
    if found := unknown or re.match(r"Subcommand '\w+' does not accept option '(.*)'", message, re.S):
        name = re.split(r"[=\s.]", found[1].lstrip("-"), maxsplit=1)[0].replace("-", "_")
        alike = difflib.get_close_matches(name, hints, n=1)
        remedy = f"did you mean --{alike[0]}?" if alike else f"leave it out, or see {program} --help"
        return f"got {'' if unknown else 'in a configuration '}{found[1]}, expected options of {program}; {remedy}"
    # What is left is wrong with a file, or can't be said more clearly.
    if any(word.partition("=")[0] == "--config" for word in words):
        wanted = f"lines like `steps: 100`, as in a run's {CONFIG}; mend it"
        return f"config: got what can't be read ({message}) in {said(words)}, expected {wanted}"
    return f"got {said(words)} ({message}), expected options of {program}; see {program} --help"


def _value(text: str) -> str:
    """A value that the parser shows; of `--steps.deeper=1` it makes an object of its own."""
    nested = re.match(r"NestedArg\(key='(.*?)', val=(.*)\)", text, re.S)
    text = f".{nested[1]}={nested[2]}" if nested else text
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."


def _wanted(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if hint in PLAIN:
        return PLAIN[hint]
    if get_origin(hint) is list:
        return "texts"
    return " or ".join(_wanted(part) for part in get_args(hint))


def _command(words: Sequence[str], commands: Commands) -> Callable[..., None] | None:
    return next((commands[word] for word in words if word in commands), None)


def _program(words: Sequence[str], commands: Commands) -> str:
    return " ".join(["ppl-vae", *[word for word in words if word in commands][:1]])


def _check_nulls(command: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Refuse null for what has no such value: the parser lets it through."""
    hints = get_type_hints(command)
    for name, value in options.items():
        if value is None and NoneType not in get_args(hints[name]):
            raise ValueError(f"{name}: got null, expected {_wanted(hints[name])}; leave it out for the default")


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


def _with_sentences(words: list[str]) -> list[str]:
    """`text ACTION RUN a b` as `text ACTION RUN --sentences+=a --sentences+=b`."""
    result, plain, is_value = words[:1], 0, False
    for word in words[1:]:
        is_option = word.startswith("--")
        plain += not is_option and not is_value  # a word behind an option is its value
        is_sentence = plain > 2 and not is_option and not is_value
        result.append(f"--sentences+={word}" if is_sentence else word)
        is_value = is_option and "=" not in word
    return result


def _options(argv: Sequence[str]) -> list[str]:
    """Options as the parser wants them: `--data-root` is `--data_root`, and compare's `--objective a --objective b`
    is `--objective+=a --objective+=b`, as are the sentences of text."""
    result, rest = [], _with_config(list(argv))
    if rest[:1] == ["text"]:
        rest = _with_sentences(rest)
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
