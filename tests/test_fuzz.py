"""The command line under bad input: every outcome is a success, or one clear error that leaves nothing behind.

A case is a list of words and the files around them. It has a problem where the program ends in any other way than by
returning, by exit status 0, or by exit status 2 with one message on stderr and the folder as it was; where it takes
what must be refused; where a message does not name what is wrong; and where it is refused only after the training.

Successes are kept cheap (at most two steps, tiny networks), and what would be work without end is not generated. Each
case has 60 seconds and, on Linux, a limit on its memory, so that sizes that no machine has are refused at once.

PPL_VAE_FUZZ=N runs N times as many examples; PPL_VAE_FUZZ_LOG=FILE appends every case and its outcome as JSON lines.
"""

import contextlib
import functools
import io
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppl_vae import cli
from tests.command_line import Case, check
from tests.fuzz_values import (
    ALONE,
    BADS,
    BASE,
    CAPTION,
    GOT,
    GREY_PAIR,
    LONG,
    OF_CLASSES,
    OF_SENTENCES,
    OPTIONS,
    PAINTER,
    PIXELS,
    READS_A_RUN,
    SCENES,
    TINY_PAIR,
    TRAINED,
    VALUES,
    values_of,
)

TIMES, MEMORY = int(os.environ.get("PPL_VAE_FUZZ", "1")), 6 * 2**30

OWN = """
from ppl_vae.pairs import VAE

class Mine(VAE):
    def __init__(self, data_shape, width=3):
        super().__init__(data_shape, 2, (width,))

class Raises(VAE):
    def __init__(self, data_shape):
        raise KeyError("width")
"""
PAIR_FILES = {
    "own.py": OWN.encode(), "syntax.py": b"class Mine(\n", "broken.py": b"1 / 0\n", "binary.py": bytes(range(256)),
    "imports.py": b"import no_such_module_at_all\n", "empty.py": b"", "exits.py": b"import sys\nsys.exit(3)\n",
    "torch.py": b"from ppl_vae.pairs import VAE as Mine\n",
}  # fmt: skip
"""Files beside the command, in which pairs are looked for."""
TABLE = f"""
title: A table
source: nowhere
data: digits
passes: 1
rows:
  - {{name: one, pair: "{TINY_PAIR}", objective: elbo}}
  - {{name: none, same_as: one}}
""".encode()


@pytest.fixture(scope="module", autouse=True)
def _little_memory() -> Iterator[None]:
    """Let a few GiB be allocated and no more, lest a size of 1e9 takes the machine's memory."""
    statm = Path("/proc/self/statm")
    if not statm.exists() or torch.cuda.is_available():  # CUDA maps far more than it uses
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# --- Lines ------------------------------------------------------------------------------------------------------------


def words_of(command: str, options: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """A valid tiny command, with further options."""
    beside = {"reproduce": ("table.yaml",), "paint": ("run", CAPTION), "text": ("path", "run", "the dog", "a cat")}
    what = beside.get(command, ("run",) if command in READS_A_RUN else ())
    return (command, *what, *(f"--{name}={value}" for name, value in {**BASE[command], **(options or {})}.items()))


def ways(value: str) -> tuple[str, ...]:
    """How a message may show a value: as it was typed or as it was read, cut where it is long; a file by its name."""
    shown = {value[:100], repr(value)[1:-1][:100], value.partition(".py:")[0]} if value else {"''", "no value"}
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        shown.add(str(yaml.safe_load(value))[:100])
    with contextlib.suppress(ValueError):
        shown.add(str(float(value)))
    return tuple(sorted(shown))


def written(draw: st.DrawFn, name: str, value: str) -> tuple[str, ...]:
    """An option and its value, as one word or two, with dashes or underscores."""
    option = f"--{name.replace('_', '-') if draw(st.booleans()) else name}"
    # A value with a leading dash is an option of its own to argparse.
    return (f"{option}={value}",) if draw(st.booleans()) or value.startswith("-") else (option, value)


@st.composite
def lines(draw: st.DrawFn, command: str) -> Case:
    """A valid tiny command with up to two more options, and one fault, several, or none that must be one."""
    names = OPTIONS[command]
    kind = draw(st.sampled_from(["value", "value", "value", "values", "odd", "word"])) if names else "word"
    others = [name for name in names if name not in ALONE and values_of(command, name).good]
    words, mentions = (), ()
    for name in draw(st.lists(st.sampled_from(others), max_size=1)) if others and kind != "odd" else ():
        words += written(draw, name, draw(st.sampled_from(values_of(command, name).good)))
        names = [n for n in names if n != name]
    if kind == "word":
        word, mentions = draw(strange_words(names))
        # These end the program before it looks at the rest.
        bad = bool(mentions)
        words = (*words, word)
    else:
        number = 1 if kind == "value" else 2
        bad = kind != "odd"
        names = [n for n in names if not bad or values_of(command, n).bad]
        for name in draw(st.lists(st.sampled_from(names), min_size=number, max_size=number, unique=True)):
            values = values_of(command, name)
            value = draw(st.sampled_from((*values.found, *values.bad) if bad else (*values.good, *values.odd, "null")))
            words += written(draw, name, value)
            mentions = () if kind == "values" else ((name, value[:100] or name), ways(value))
    return Case((*words_of(command), *words), files_for(command), bad, mentions if bad else ())


@st.composite
def strange_words(draw: st.DrawFn, names: list[str]) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """A word that is no option, and what the message must hold: nothing where it may be one."""
    name = draw(st.sampled_from(names or ["steps"]))
    kind = draw(st.sampled_from([*BADS, "junk", "help", "print_config"]))
    if kind in BADS:
        word = BADS[kind].format(name)
        return word, (
            # A word too many is a sentence, to `text`, which counts them.
            (name if kind in ("nested", "no value") else word.removesuffix("=1"), *["sentences"] * (kind == "extra")),
            (GOT.get(kind, "got") if names else "got",),
        )
    text = draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8))
    return draw(st.sampled_from(["", "--"])) + text if kind == "junk" else f"--{kind}", ()


# --- Files ------------------------------------------------------------------------------------------------------------


@functools.cache
def run_folder(data: str = "digits", pair: str = TINY_PAIR) -> dict[str, bytes]:
    """The files of a run of one step, made once."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cli.main(list(words_of("train", {"data": data, "pair": pair})))
        return {f"run/{name}": Path("run", name).read_bytes() for name in ("config.yaml", "pair.pt")}


def files_for(command: str) -> dict[str, bytes]:
    trained = {
        "paint": (SCENES, PAINTER), "complete": ("digits", PIXELS), "sample": OF_CLASSES, "text": OF_SENTENCES
    }  # fmt: skip
    run = run_folder(*trained.get(command, ())) if command in READS_A_RUN else {}
    return {**PAIR_FILES, "table.yaml": TABLE, **run}


def saved(save: Callable[..., Any], *args: Any, **kwargs: Any) -> bytes:
    save(content := io.BytesIO(), *args, **kwargs)
    return content.getvalue()


npz, npy = functools.partial(saved, np.savez), functools.partial(saved, np.save)


def pt(value: Any) -> bytes:
    return saved(lambda file: torch.save(value, file))


def zipped(name: str, content: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00v\x00" + text.encode().ljust(117) + b"\n"


class Evil:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> Any:
        return (exec, ("open('pwned', 'w').close()",))


GOOD = np.linspace(0, 1, 20 * 64, dtype=np.float32).reshape(20, 1, 8, 8)
IMAGES, WITH_NAN, SUFFIXES = torch.tensor(GOOD), np.where(GOOD > 0.9, np.nan, GOOD), (".npz", ".npy", ".pt")
HUGE_HEADER = header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }")
GOOD_DATA: dict[str, bytes] = {
    "good.npz": npz(train=GOOD), "good.npy": npy(GOOD), "good.pt": pt(IMAGES), "dict.pt": pt({"train": IMAGES}),
    "test.npz": npz(train=GOOD, test=GOOD[:3], train_labels=np.arange(20), test_labels=np.arange(3)),
    "flat.npy": npy(GOOD.reshape(20, 64)), "bytes.npy": npy((255 * GOOD).astype(np.uint8)), "bool.npy": npy(GOOD > 0.5),
    "half.npy": npy(GOOD.astype(np.float16)), "double.npy": npy(GOOD.astype(np.float64)),
}  # fmt: skip
BAD_DATA: dict[str, bytes] = {
    **{f"empty{suffix}": b"" for suffix in SUFFIXES},
    **{f"text{suffix}": b"1,2,3\n" for suffix in SUFFIXES},
    **{f"pickle{suffix}": pickle.dumps({"train": [1.0]}) for suffix in SUFFIXES},
    **{f"evil{suffix}": pickle.dumps(Evil()) for suffix in SUFFIXES},
    **{f"zip{suffix}": zipped("train.npy", b"no array") for suffix in SUFFIXES},
    "objects.npy": npy(np.array([{}, []], dtype=object)), "objects.npz": npz(train=np.array([{}, []], dtype=object)),
    "member.npz": zipped("train", b"no array"), "no_member.npz": zipped("other.txt", b"text"),
    "other.npz": npz(x=GOOD), "more.npz": npz(train=GOOD, valid=GOOD),
    "nan.npz": npz(train=WITH_NAN), "nan.npy": npy(WITH_NAN), "nan.pt": pt(torch.tensor(WITH_NAN)),
    "inf.npy": npy(np.where(GOOD > 0.9, np.inf, GOOD)), "range.npy": npy(GOOD * 255), "negative.npy": npy(-GOOD),
    "ints.npy": npy((GOOD * 9).astype(np.int64)), "uint16.npy": npy((GOOD * 9).astype(np.uint16)),
    "complex.npy": npy(GOOD.astype(np.complex64)), "dates.npy": npy(np.zeros((20, 8), dtype="datetime64[s]")),
    "strings.npy": npy(GOOD.astype(str)), "strings.npz": npz(train=GOOD.astype(str)),
    "fields.npy": npy(np.zeros((20, 8), dtype=[("a", "f4"), ("b", "f4")])),
    "scalar.npy": npy(np.float32(0.5)), "vector.npy": npy(GOOD.reshape(-1)), "five.npy": npy(GOOD[None]),
    "none.npy": npy(GOOD[:0]), "no_size.npy": npy(GOOD[:, :, :0]), "one.npy": npy(GOOD[:1]),
    "channels_last.npy": npy(np.zeros((20, 8, 8, 3), dtype=np.float32)),
    "other_test.npz": npz(train=GOOD, test=GOOD[:, :, :4]), "empty_test.npz": npz(train=GOOD, test=GOOD[:0]),
    "labels.npz": npz(train=GOOD, train_labels=np.arange(3)),
    "string_labels.npz": npz(train=GOOD, train_labels=np.full(20, "cat")),
    "huge.npy": HUGE_HEADER, "huge.npz": zipped("train.npy", HUGE_HEADER),
    "header.npy": header("{'descr': '<f4', 'fortran_order"),
    "header2.npy": header("__import__('os').system('touch pwned')"),
    "descr.npy": header("{'descr': 'x9', 'fortran_order': False, 'shape': (2, 2), }"),
    "minus.npy": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 2), }"),
    "evil_torch.pt": pt(Evil()), "list.pt": pt([IMAGES]), "text_inside.pt": pt({"train": "text"}), "none.pt": pt(None),
    "none_inside.pt": pt({"train": None}), "numbers.pt": pt({1: IMAGES, "train": IMAGES}), "string.pt": pt("text"),
    "model.pt": pt(torch.nn.Linear(2, 2)), "weights.pt": pt(torch.nn.Linear(2, 2).state_dict()),
    "suffix.txt": npy(GOOD), "folder.npz/file": b"",
}  # fmt: skip
DEEP = b"[" * 3000 + b"]" * 3000
YAML_TEXTS: dict[str, bytes] = {
    "tag": b"!!python/object/apply:os.system ['touch pwned']\n", "tag name": b"steps: !!python/name:os.system\n",
    "tag inside": b"steps: !!python/object/apply:os.system ['touch pwned']\n", "own tag": b"steps: !mine 1\n",
    "list": b"[1, 2]\n", "scalar": b"1\n", "word": b"steps\n", "two documents": b"steps: 1\n---\nsteps: 2\n",
    "open": b"steps: [1, 2\n", "tab": b"steps:\n\t1\n", "nested": b"steps: {steps: {steps: 1}}\n",
    "wrong key": b"stepsx: 1\n", "number key": b"1: 1\n", "null key": b"null: 1\n", "list key": b"[1, 2]: 1\n",
    "colon": b"a:b:c: d\n", "binary": bytes(range(256)), "latin": "out: \xfc\n".encode("latin-1"),
    "nul": b"out: a\x00b\n", "escaped nul": b'out: "a\\0b"\n', "surrogate": b'out: "\\ud800"\n',
    "deep": b"steps: " + DEEP, "deep map": b"{a: " * 100 + b"}" * 100,
    "anchor": b"steps: *nowhere\n", "loop": b"steps: &a [*a]\n", "dots": b"steps.deeper: 1\n",
    "other command": b"compare:\n  steps: 1\n", "command": b"train:\n  steps: 1\n", "config": b"config: other.yaml\n",
    "long number": b"steps: " + b"9" * 5000 + b"\n", "large": b"learning_rate: 1" + b"0" * 400,
    "true": b"config: true\n", "mapping": b"config: {}\n",
}  # fmt: skip
MAYBE_YAML_TEXTS: dict[str, bytes] = {
    "empty": b"", "comment": b"# nothing\n", "null": b"null\n", "braces": b"{}\n", "bom": b"\xef\xbb\xbfsteps: 1\n",
    "twice": b"steps: 1\nsteps: 2\n", "anchors": b"steps: &a 1\nseed: *a\n", "merge": b"<<: {steps: 1}\n",
    "itself": b"config: c.yaml\n", "json": b'{"steps": 1, "overwrite": false}',
    "class_path": b"class_path: os.system\ninit_args: {command: touch pwned}\n",
}  # fmt: skip

numbers = st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.dates()
scalars = numbers | st.text(max_size=5) | st.binary(max_size=3)
junk_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner), max_leaves=4
)


def with_config(content: bytes, bad: bool = True, *mentions: tuple[str, ...]) -> Case:
    return Case((*words_of("train"), "--config", "c.yaml"), {**PAIR_FILES, "c.yaml": content}, bad, mentions)


def dumped(mapping: Mapping[Any, Any]) -> bytes:
    return yaml.dump(mapping, allow_unicode=True).encode(errors="surrogatepass")


@st.composite
def configs(draw: st.DrawFn) -> Case:
    """`train --config FILE` with a value of the wrong type or out of range, or with a bad text."""
    if draw(st.booleans()):
        bad = draw(st.booleans())
        texts = YAML_TEXTS if bad else MAYBE_YAML_TEXTS
        return with_config(texts[draw(st.sampled_from(sorted(texts)))], bad)
    name = draw(st.sampled_from([n for n in OPTIONS["train"] if n != "config"]))
    kind = draw(st.sampled_from(["good", "bad", "bad", "type", "key"]))
    values = (*VALUES[name].found, *VALUES[name].bad) if kind == "bad" else VALUES[name].good if kind == "good" else ()
    if kind == "key":
        return with_config(dumped({draw(st.text(min_size=1, max_size=5).map(lambda t: f"x{t}")): 1}))
    if values:
        value = draw(st.sampled_from(values))
        content = f"{name}: {value}".encode() if kind == "good" else dumped({name: _plain(value)})
        return with_config(content, kind == "bad", (name, value[:100] or name), ways(value))
    # Any number of steps is a legitimate wish, and so are many particles.
    smaller = junk_values.filter(lambda v: isinstance(v, bool) or not isinstance(v, int | float) or v < 0)
    return with_config(dumped({name: draw(smaller)}), False)


def _plain(text: str) -> Any:
    """A number or null where the text is one, the text itself otherwise."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return None if text in ("null", "~") else text


def with_data(name: str, content: bytes, bad: bool = True) -> Case:
    path = name.partition("/")[0]
    words = words_of("train", {"pair": GREY_PAIR, "batch_size": "2", "num_test": "1", "data": path})
    return Case(words, {name: content}, bad, ((Path(path).stem,),))


@st.composite
def data_files(draw: st.DrawFn) -> Case:
    """`train --data FILE` with a damaged file."""
    name = draw(st.sampled_from(sorted(GOOD_DATA)))
    content, change = bytearray(GOOD_DATA[name]), draw(st.sampled_from(["none", "cut", "cut", "flip", "flip"]))
    if change == "cut":
        content = content[: draw(st.integers(0, len(content) - 1))]
    for _ in range(draw(st.integers(1, 4)) if change == "flip" else 0):
        # Most of a file is numbers; its ends hold the structure.
        place = draw(st.integers(0, min(300, len(content) - 1)))
        content[place if draw(st.booleans()) else -1 - place] = draw(st.integers(0, 255))
    return with_data(name, bytes(content), change == "cut")


def with_run(config: bytes, *mentions: tuple[str, ...]) -> Case:
    return Case(words_of("reconstruct"), {**files_for("reconstruct"), "run/config.yaml": config}, True, mentions)


KEYS = ("pair", "objective", "data", "binarisation", "data_seed", "data_root")


@st.composite
def run_folders(draw: st.DrawFn) -> Case:
    """A command that reads a run, and a damaged run folder."""
    command, files = draw(st.sampled_from(READS_A_RUN)), files_for("evaluate")
    kind = draw(st.sampled_from(["text", "value", "value", "missing", "weights", "cut config", "cut weights"]))
    config = yaml.safe_load(files["run/config.yaml"])
    if kind == "text":
        files["run/config.yaml"] = draw(st.sampled_from(sorted({*YAML_TEXTS.values(), b""})))
    elif kind == "value":
        name = draw(st.sampled_from(KEYS))
        config[name] = draw(st.sampled_from([*VALUES[name].bad, *VALUES[name].odd, "nowhere"]) | junk_values)
        files["run/config.yaml"] = dumped(config)
    elif kind == "missing":
        del files[draw(st.sampled_from(sorted(name for name in files if name.startswith("run"))))]
    elif kind == "weights":
        files["run/pair.pt"] = draw(st.sampled_from([text for name, text in BAD_DATA.items() if name.endswith(".pt")]))
    else:
        name = "run/config.yaml" if kind == "cut config" else "run/pair.pt"
        files[name] = files[name][: draw(st.integers(0, len(files[name]) - 1))]
    return Case(words_of(command), files, kind not in ("value", "cut config"), (("run",),))


# --- Texts of pairs and objectives ------------------------------------------------------------------------------------

LITERALS = (
    "1", "2", "0", "-1", "1.5", "1e400", "nan", "inf", "None", "True", "'a'", "''", "b'a'", "1j", "...", "(1, 2)",
    "(2,)", "()", "[]", "[1]", "{}", "{'a': 1}", "{[1]: 2}", "{1, 2}", "(0,)", "(-1,)", "(1.5,)", "('a',)",
    "((2,), (3,))", "nn.ReLU", "nn.Identity", "nn.Module", "nn.Linear", "nn.functional", "nn.GLU", "nn.ModuleList",
    "nn.nope", "nn.ReLU()", "LinearWarmup(5)", "LinearWarmup(0)", "LinearWarmup", "NormalHead(2)", "VAE()",
    "FixedNormalHead(2, -1)", "1000000000", "(1000000000,)", "9" * 400, "9" * 5000, "-" * 50 + "1", "-" * 5000 + "1",
    "(" * 150 + "1" + ")" * 150, "__import__('os').system('touch pwned')", "lambda: 0", "[x for x in y]", "f'{1}'",
    "*a", "2 ** 9", "1 if 1 else 2", "__loader__()", "__builtins__", "open('pwned', 'w')", "nn.Module.__init__",
    "(1).__class__", "x", "½", "'normal'", "'bernoulli'", "'grey-bernoulli'", "'discretised-logistic'", "'mlp'",
    "'conv'",
)  # fmt: skip
PAIR_KEYS = ("latent_dim", "latent_dims", "hidden", "trunk", "activation", "likelihood", "variance", "levels")
PAIR_NAMES = (
    "VAE", "VAE", "VAE", "HierarchicalVAE", "vae", "Pair", "", "nn.Module", "VAE.model", "VAE()", "ÜAE", "VAE VAE",
    "own.py:Mine", "own.py:Raises", "own.py:Nope", "own.py:", "own.py:VAE", ".py:Mine", "missing.py:Mine",
    "syntax.py:Mine", "broken.py:Mine", "imports.py:Mine", "binary.py:Mine", "empty.py:Mine", "exits.py:Mine",
    "torch.py:Mine", "own:Mine", "own.py", "own.py:Mine:Mine", "own.py:os.system", "./own.py:Mine", "kept.txt:Mine",
    "..:Mine",
)  # fmt: skip
OBJECTIVE_KEYS = (
    "num_particles", "alpha", "kl_weight", "joint", "vectorize_particles", "max_plate_nesting", "beta", "num_bounds",
    "particles_per_bound", "free_bits", "nope", "retain_graph", "steps", "self", "class",
)  # fmt: skip
SHORT = ("elbo", "mean-field", "iwae", "stl", "dreg", "vimco", "rws", "enum", "graph", "ELBO", "iw", "")
COUNTS = (
    "", "1", "2", "0", "-1", "1e9", "many", "²", "٢", "9" * 5000, "1000000000", " 2", "2 ", "+2", "2:3", "1.5", "½",
)  # fmt: skip
CLASSES = (
    "Trace_ELBO", "IWAE", "RenyiELBO", "STL", "DReG", "VIMCO", "MIWAE", "CIWAE", "PIWAE", "BetaELBO", "CapacityELBO",
    "FreeBits", "TailAdaptive", "ThermodynamicELBO", "WakeSleep", "ReweightedWakeSleep", "VRMax", "TraceEnum_ELBO",
    "Objective", "PairLoss", "Schedule", "LinearWarmup", "iwae", "Nope", "os.system", "__import__('os').system",
)  # fmt: skip


@st.composite
def calls(draw: st.DrawFn, names: tuple[str, ...], keys: tuple[str, ...], usual: str) -> str:
    """`Name(key=value, ...)`, now and then with a character removed, doubled or put in, or cut off."""
    text = draw(st.sampled_from(names))
    chosen = draw(st.lists(st.sampled_from(keys), max_size=2, unique=True))
    given = [f"{key}={draw(st.sampled_from(LITERALS))}" for key in chosen]
    if draw(st.integers(0, 9)) == 0:
        given.insert(0, draw(st.sampled_from([*LITERALS, "**{}", "*()"])))
    if given or draw(st.booleans()):
        text += f"({', '.join(given if not usual or any(k in usual for k in chosen) else [*given, usual])})"
    # A huge number less a few digits might be work without end.
    if len(text) > 1 and "00000" not in text and "99999" not in text and draw(st.integers(0, 3)) == 0:
        i = draw(st.integers(0, len(text) - 1))
        put = draw(st.sampled_from(["", "(", ")", "'", "\n", " ", ",", ":", "=", "\\", "#", "é", text[i] * 2]))
        text = draw(st.sampled_from([text[:i], text[:i] + put + text[i + 1 :]]))
    return text


def texts(option: str, of: st.SearchStrategy[str]) -> st.SearchStrategy[Case]:
    commands = st.sampled_from(["train", "train", "train", "compare"])
    return st.builds(lambda text, command: Case(words_of(command, {option: text}), PAIR_FILES), of, commands)


objective_texts = st.one_of(
    st.tuples(st.sampled_from(SHORT), st.sampled_from(COUNTS)).map(":".join),
    calls(CLASSES, OBJECTIVE_KEYS, ""),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10),
)


# --- The tests --------------------------------------------------------------------------------------------------------


def fuzzed(cases: st.SearchStrategy[Case], number: int) -> Callable[[], None]:
    """A test of so many cases."""

    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @settings(max_examples=number * TIMES, derandomize=True, deadline=None, database=None, suppress_health_check=slow)
    @given(cases)
    def test(case: Case) -> None:
        check(case)

    return test


test_compare = fuzzed(lines("compare"), 8)
test_train = fuzzed(lines("train"), 36)
test_reproduce = fuzzed(lines("reproduce"), 12)
test_evaluate = fuzzed(lines("evaluate"), 12)
test_pictures_and_list = fuzzed(
    st.sampled_from(["sample", "reconstruct", "complete", "manifold", "paint", "list"]).flatmap(lines), 25
)
test_text = fuzzed(lines("text"), 12)
test_config = fuzzed(configs(), 24)
test_data_files = fuzzed(data_files(), 10)
test_run_folders = fuzzed(run_folders(), 20)
test_pair_texts = fuzzed(texts("pair", calls(PAIR_NAMES, PAIR_KEYS, "hidden=(3,)")), 20)
test_objective_texts = fuzzed(texts("objective", objective_texts), 20)

FOUND = [
    (command, option, value)
    for command, options in OPTIONS.items()
    for option in options
    for value in values_of(command, option).found
    if command == "train" or option not in ("pair", "objective")
]


@pytest.mark.parametrize(("command", "option", "value"), FOUND, ids=lambda text: text[:30])
def test_a_bad_value_is_refused_by_name_and_before_the_training(command: str, option: str, value: str) -> None:
    named = ("exits.py",) if value.startswith("exits") else ways(value)
    check(Case(words_of(command, {option: value}), files_for(command), True, ((option, "data", value[:100]), named)))


@pytest.mark.parametrize("table", ["nope", "missing.yaml", "", "kept.txt", "..", LONG, "own.py"])
def test_a_table_that_is_none_is_refused(table: str) -> None:
    files = files_for("reproduce")
    check(Case(("reproduce", table, *words_of("reproduce")[2:]), files, True, (("table",), ways(table))))


@pytest.mark.parametrize("out", ["", ".", "..", "../here", "./", "kept"])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_overwrite_never_empties_a_folder_of_others(command: str, out: str) -> None:
    ours = run_folder()["run/config.yaml"]  # even where the working folder is a run
    files = {"kept/config.yaml": b"mine: 1\n", "kept/results.json": b"[]", "config.yaml": ours, "../config.yaml": ours}
    check(Case(words_of(command, {"out": out, "overwrite": "true"}), {**PAIR_FILES, **files}, True, (("out",),)))


@pytest.mark.parametrize("option", sorted({"steps", "data", "out", "objective", *BASE["train"], *TRAINED}))
def test_null_in_a_config_is_refused_by_name(option: str) -> None:
    allows = {"num_test", "pair", "clip_norm", "ema", "patience", "checkpoint_every", "resume"}
    check(with_config(f"{option}: null\n".encode(), option not in allows, (option,), ("null", "None")))


@pytest.mark.parametrize("name", ["true", "mapping", "large", "escaped nul", "deep"])
def test_a_strange_config_is_refused(name: str) -> None:
    check(with_config(YAML_TEXTS[name], True, ("config", "out")))


@pytest.mark.parametrize("name", sorted(YAML_TEXTS))
def test_a_bad_table_is_refused(name: str) -> None:
    check(Case(words_of("reproduce"), {"table.yaml": YAML_TEXTS[name]}, True, (("got 'table.yaml'",),)))


@pytest.mark.parametrize(
    ("before", "after", "mention"),
    [
        (b"passes: 1", b"passes: many", "many"), (b"passes: 1", b"speed: 1", "speed"), (b"elbo", b"nope", "nope"),
        (b"VAE", b"Nope", "Nope"), (b"same_as: one", b"same_as: two", "two"), (b"digits", b"nope", "nope"),
        (b"digits", b"missing.npz", "missing.npz"), (b"name: none", b"name: one", "one"),
        (b"passes: 1", b"passes: 1\nschedule: nope", "nope"), (b"passes: 1", b"passes: 1\nbatch_size: 0", "0"),
        (b"passes: 1", b"passes: 1\nbinarisation: grey", "grey"), (b"latent_dim=2", b"latent_dim=0", "latent_dim"),
        (b"passes: 1", b"passes: -1", "-1"), (b"passes: 1", b"passes: 1\nlearning_rate: -1", "-1"),
        (b"passes: 1", b"passes: 1\nnum_particles: 0", "0"), (b"passes: 1", b"passes: 1\nnum_train: 0", "0"),
        (b"passes: 1", b"passes: 1\nweight_precision: -1", "-1"),
        (b"passes: 1", b"passes: 1\nweight_precision: .inf", "inf"),
    ],
)  # fmt: skip
def test_a_bad_line_of_a_table_is_refused(before: bytes, after: bytes, mention: str) -> None:
    files = {"table.yaml": TABLE.replace(before, after)}
    words = tuple(word for word in words_of("reproduce") if "num_particles" not in word)
    check(Case(words, files, True, ((mention,),)))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [..., None, 1, 1.5, [], b"x", 2**70], ids=repr)
def test_a_run_whose_config_is_damaged_is_refused(key: str, value: Any) -> None:
    if (key, value) in (("data_root", None), ("data_seed", 1), ("binarisation", None)):
        return  # these are allowed
    config = {**yaml.safe_load(run_folder()["run/config.yaml"]), key: value}
    check(with_run(dumped({name: v for name, v in config.items() if v is not ...}), (key,)))


@pytest.mark.parametrize("text", [DEEP, b"{a: " * 3000 + b"}" * 3000], ids=["list", "mapping"])
def test_a_run_whose_config_is_deep_is_refused(text: bytes) -> None:
    check(with_run(text, ("run",)))


@pytest.mark.parametrize("name", sorted(BAD_DATA))
def test_a_bad_data_file_is_refused(name: str) -> None:
    check(with_data(name, BAD_DATA[name]))
