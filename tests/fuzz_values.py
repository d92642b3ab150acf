"""What the options of the command line are given by way of fuzzing: values that work, and values that must not."""

from typing import NamedTuple

TINY_PAIR = "VAE(latent_dim=2, hidden=(3,))"
PIXELS = "PixelCNN(hidden=2, layers=1, features=2)"
PAINTER = "AlignDRAW(latent_dim=2, hidden=3, steps=2, words=2, align=2, read=2, write=2)"
SCENES = "scenes(digits, size=16, num_train=100, num_test=5)"
OF_CLASSES = ("labelled(digits)", "ConditionalVAE(latent_dim=2, hidden=(3,))")
OF_SENTENCES = ("text(grammar)", "TextVAE(latent_dim=2, hidden=4, embedding=3)")
CAPTION = "the digit three is at the top left of the image ."
GREY_PAIR = "VAE(latent_dim=2, hidden=(3,), likelihood='normal')"


class Values(NamedTuple):
    """Values of an option, as text: `good` ones work, `bad` and `found` ones must be refused (those that once were
    not, or badly, are tried each by itself), `odd` ones may end either way."""

    good: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


FAR, LONG, HUGE = str(10**9), "x" * 300, "9" * 30
NO_NUMBER = ("many", "", "nan", "[1, 2]", "{a: 1}", "1,5", "--", "½", "1 2", "0/0", LONG, "!!python/object:os.x 1")
NO_COUNT = (*NO_NUMBER, "1.5", "-1", "inf", "-inf", "1e-3", str(-(2**70)), "[]")
ODD_COUNT = ("+1", " 1", "1 ", "01", "0x1", "0b1", "1_0", "1.0", "1e0", "２", "true", "!!int 1", "&a 1", "1 # one")
BOOL = Values(("false",), (), ("maybe", "", "2", "[]", "null", "{}", "falsee"), ("no", "off", "False", "0", "f"))
COUNT = Values(("1", "2"), ("0", "-1"), ("null", *NO_COUNT), ODD_COUNT)
NUMBER = Values(("1", "3"), ("0", "-1", FAR, HUGE), ("null", *NO_COUNT), ODD_COUNT)
SEED = Values(
    ("0", "1", str(2**31), str(2**63 - 1)), (str(2**64),),
    ("many", "", "nan", "[1, 2]", "1.5", "inf", "null", str(-(2**64)), "9" * 500),
    ("-1", str(2**64 - 1), str(-(2**63)), *ODD_COUNT),
)  # fmt: skip
NO_RATE = (*NO_NUMBER, "-inf", "1e", "1j")
VALUES: dict[str, Values] = {
    "steps": Values(("1", "2"), ("0",), ("null", *NO_COUNT), ODD_COUNT),
    "seeds": Values(("1",), (FAR,), ("0", "null", *NO_COUNT), ("+1", " 1", "01", "0x1", "1.0", "true")),
    "batch_size": Values(("20", "2", "1"), (FAR,), ("0", "null", *NO_COUNT, str(2**63), HUGE), ODD_COUNT),
    "learning_rate": Values(
        ("0.001", "1e-3", "1", ".5"), (".nan", ".inf", "-1"), (*NO_RATE, "-1e-9", "inf", "1e400", "null"),
        ("0", "1e-300", "1e30", "1e308", "0x1", "+1", "true"),
    ),
    "schedule": Values(
        ("constant", "cosine:0", "step:1:0.5", "plateau", "burda"), (f"cosine:{HUGE}",),
        ("", "nope", "null", "cosine:-1", "cosine:²", "step:0:0.5", "step:1:2", "step:1:nan", "step:1", "plateau:2:1",
         "plateau:0.5:1e400", "constant:1", ":", LONG), ("plateau:0.5:0", "step:1:1e-300", "cosine:01"),
    ),
    "clip_norm": Values(("5", "0.1"), (".nan",), (*NO_RATE, "0", "-1"), ("null", "inf", ".inf", "1e-300", "true")),
    "accumulate": Values(("1", "2"), ("0",), ("null", *NO_COUNT, FAR, HUGE), ("+1", "1.0", "0x1", "true")),
    "ema": Values(("0.9", "0.999"), (".nan",), (*NO_RATE, "-1", "0", "1", "2", ".inf"), ("null", "1e-300", "true")),
    "valid": Values(("0", "10"), ("-1", FAR), ("null", *NO_COUNT, "1437", HUGE), ("1.0", "0x2", "true", "1436")),
    "patience": Values(("1",), ("0",), NO_COUNT, ("null", "2", "true", HUGE)),
    "precision": Values(("float32", "bf16"), (), ("", "fp16", "null", "32", "[bf16]", "BF16")),
    "deterministic": BOOL,
    "on_nonfinite": Values(("stop", "skip"), (), ("", "never", "null", "0", "[stop]")),
    "checkpoint_every": Values(("1", "5"), ("0",), NO_COUNT, ("null", HUGE, "true")),
    "tensorboard": BOOL,
    "resume": Values((), ("nowhere",), ("..", "kept.txt", "nowhere.pt", LONG, "kept.txt/x", "/dev/null"), ("", "null")),
    "num_particles": COUNT,
    "num_test": Values(("1", "2"), ("0", "-1", FAR), (*NO_COUNT, str(2**70)), ("null", *ODD_COUNT)),
    "gradient_draws": Values(("0", "2"), (), NO_COUNT, ("null", "1.0", "0x2", "true")),
    "num": NUMBER,
    "size": NUMBER,
    "draws": NUMBER,
    "given": Values(("0", "1", "7"), ("8", "-1"), (*NO_COUNT, HUGE), ("null", "true", "1.0", "０")),
    "label": Values(("0", "9"), ("10", "-1"), (*NO_COUNT, HUGE), ("null", "true", "1.0", "０")),
    "latents": Values(("z", " z "), ("nope", ""), ("x", "z;z", "[z]", "²", LONG), ("null", "z,z", "z,")),
    "beam": Values(("1", "3"), ("0", "-1"), NO_COUNT, ("null", "true", "1.0")),
    "temperature": Values(("1", "0.5"), ("0", ".nan", ".inf"), (*NO_RATE, "-1", "null"), ("1e-300", "1e300", "true")),
    "top_k": Values(("1", "5"), ("0", "-1"), NO_COUNT, ("null", "true", "1.0", HUGE)),
    "top_p": Values(("1", "0.5"), ("0", "1.1", ".nan"), (*NO_RATE, "-1", ".inf"), ("null", "1e-300", "true")),
    "seed": SEED,
    "data_seed": SEED,
    "device": Values(
        ("cpu",), ("meta", "xla", "privateuseone"), ("", "gpu", "cuda:99", "cuda:-1", "cuda:x", "CPU", "cpu:x", "[cpu]",
        "ćpu", "cpu;ls", "ipu", "vulkan", "null"), ("cpu:0", "cpu:3", "mps"),
    ),
    "compile": Values(("off",), (), ("", "cudagraph", "fast", "OFF", "null", "0", "[off]", "öff"), ("false", "no")),
    "workers": Values(("1",), (), ("0", *NO_COUNT), ("1.0", "01", "true")),
    "overwrite": BOOL,
    "stacked": BOOL,
    "progress": BOOL,
    "binarisation": Values(
        ("dynamic", "static"), (), ("", "grey", "Dynamic", "[dynamic]", "0", "true", "{}"), ("none", "null", "None")
    ),
    "data": Values(
        ("digits",), (
            "scenes()", "scenes(digits)", "scenes(a, b)", "scenes(digits, size=-1)", f"scenes(digits, size={FAR})",
            f"scenes(digits, size={HUGE})", "scenes(digits, size=True)", "scenes(digits, size=16.5)",
            "scenes(digits, size=16, digit_size=0)", "scenes(digits, size=16, digit_size='a')",
            "scenes(digits, size=16, num_train=-1)", f"scenes(digits, size=16, num_train={FAR})",
            "scenes(digits, size=16, num_test='a')", "scenes(digits, size=16, banned=3)",
            "scenes(digits, size=16, banned=[{}])", "scenes(digits, size=16, templates=3)",
            "scenes(digits, size=16, templates=[[]])", "scenes(digits, size=16, coloured=[])", "scenes(digits, **{})",
            "scenes(scenes(digits, size=16), size=32)", f"scenes(digits, size={'-' * 5000}1)",
            "partly_labelled()", "partly_labelled(digits)", "partly_labelled(digits, known=-10)",
            "partly_labelled(digits, known=55)", "partly_labelled(digits, known='a')",
            f"partly_labelled(digits, known={FAR})", "partly_labelled(digits, known=50, repeat=0)",
            "partly_labelled(digits, known=50, repeat=1.5)", f"partly_labelled(digits, known=50, repeat={FAR})",
            "partly_labelled(digits, known=50, choice='a')", f"partly_labelled(digits, known=50, choice={HUGE})",
            "partly_labelled(digits, known=50, classes=3)", f"partly_labelled(digits, known=50, classes={FAR})",
        ), ("", "nope", "Digits", "digits ", "missing.npz", "missing.pt", "kept.txt", "..", LONG,
        "ðigits", "[digits]", "null", "~"),
    ),
    "data_root": Values(("nowhere", "."), (), (), ("", "null", "kept.txt", "ü", LONG)),
    "out": Values(
        ("out", "a/b", "ünï cødé", "with space", "out.png"), ("kept.txt/out", f"a/{LONG}", "/dev/null/x"),
        ("", ".", "..", "kept.txt", "../kept.txt", LONG, "/proc/out"), ("null", "[out]", "~", "{}", "a\nb"),
    ),
    "pair": Values((TINY_PAIR,), (
        "VAE(2)", "own.py:Mine(9)", "VAE(latent_dim={[1]: 2})", "VAE(latent_dim=True)", "own.py:Raises",
        "exits.py:Mine", "VAE(latent_dim='')", "VAE(hidden=(1.5,))", "VAE(hidden=(3,), activation=nn.Module)",
        "VAE(hidden=(3,), activation=nn.GLU)", "VAE(trunk='conv', hidden=(0,))", "VAE(trunk='conv', hidden=(-1,))",
        "VAE(latent_dim=0)", f"VAE(latent_dim={'-' * 5000}1)", f"VAE(latent_dim={FAR}, hidden=(3,))",
    ), ("nope", "missing.py:Mine", "VAE("), ("", "null")),
    "objective": Values(("elbo", "iwae:2"), (
        "", "iwae:0", "elbo:", f"iwae:{FAR}", "iwae:²", f"iwae:{'9' * 5000}", "CapacityELBO(True)",
        "IWAE(max_plate_nesting='a')", "IWAE(num_particles=True)", "IWAE(kl_weight=nn.ReLU)",
        f"IWAE(kl_weight=1{'0' * 400})",
    ), ("nope", "iwae:1e9", ":2")),
    "film": Values(
        ("out.gif", "a/b.gif", "ü.gif"), ("kept.txt/x.gif",), ("", ".", "out.png", LONG, "/proc/x.gif"), ("null",)
    ),
    "config": Values((), (), ("missing.yaml", "..", LONG), ("", "kept.txt")),
    "fraction": Values(("1", "0.5"), ("0", ".nan"), (*NO_RATE, "-1", "1.5", "null", "1e400"), ("1e-300", "true")),
    "passes": Values(("0.01",), ("0", ".nan"), (*NO_RATE, "-1"), ("null", "1e-300")),
    "rows": Values(("1", "one", "one; 2"), (), ("3", "nope", "", "1;9", "[]", "-1", LONG), ("null", " 1 ", "１")),
}  # fmt: skip
PNG_OUT = Values(("out.png", "a/b.png", "ü.png"), (".", ".."), ("kept.txt/x.png", LONG, "/proc/x.png"), ("", "null"))

TINY = {"steps": "1", "num_particles": "2", "num_test": "2", "progress": "false", "device": "cpu"}
BASE: dict[str, dict[str, str]] = {
    "compare": {**TINY, "pair": TINY_PAIR, "objective": "elbo", "seeds": "1", "workers": "1", "gradient_draws": "0"},
    "train": {**TINY, "pair": TINY_PAIR}, "evaluate": {n: value for n, value in TINY.items() if n != "steps"},
    "sample": {"num": "2"}, "reconstruct": {"num": "2"}, "manifold": {"size": "2"}, "list": {},
    "complete": {"num": "2", "draws": "1"},
    "paint": {"num": "2"}, "text": {"num": "2", "steps": "1"},
    "reproduce": {n: value for n, value in TINY.items() if n != "steps"} | {"passes": "0.01", "workers": "1"},
}  # fmt: skip
COMMON = (
    "data", "data_root", "binarisation", "data_seed", "batch_size", "learning_rate", "compile", "out", "overwrite",
    "config",
)  # fmt: skip
TRAINED = (
    "schedule", "clip_norm", "accumulate", "ema", "valid", "patience", "precision", "deterministic", "on_nonfinite",
    "checkpoint_every", "tensorboard", "resume",
)  # fmt: skip
OPTIONS = {
    "compare": [*BASE["compare"], *COMMON],
    "train": [*BASE["train"], *COMMON, *TRAINED, "objective", "seed"],
    "evaluate": [*BASE["evaluate"], "objective", "data_root", "seed", "config"],
    "sample": ["num", "label", "seed", "out", "data_root", "config"],
    "reconstruct": ["num", "latents", "seed", "out", "data_root", "config"],
    "text": ["num", "steps", "beam", "temperature", "top_k", "top_p", "out", "data_root", "config"],
    "complete": ["given", "num", "draws", "seed", "out", "data_root", "config"],
    "manifold": ["size", "out", "data_root", "config"],
    "paint": ["num", "film", "seed", "out", "data_root", "config"],
    "reproduce": [
        *BASE["reproduce"],
        "fraction",
        "rows",
        "seeds",
        "batch_size",
        "data_root",
        "compile",
        "out",
        "config",
        "stacked",
    ],
    "list": [],
}
GOT = {"no value": "got no value", "nested": "deeper"}
ALONE = ("patience", "resume", "config")  # need another option, or take the place of all
READS_A_RUN = ("evaluate", "sample", "reconstruct", "complete", "manifold", "paint", "text")
BADS = {"misspelt": "--{}x=1", "no value": "--{}", "extra": "extra", "nested": "--{}.deeper=1", "foreign": "--alpha=1"}


def values_of(command: str, option: str) -> Values:
    if option == "out" and command in READS_A_RUN:
        return PNG_OUT
    if command == "reproduce" and option == "num_particles":
        return COUNT._replace(bad=NO_COUNT)  # null is the table's number
    # Of more test data than there are, all are reconstructed; a path between sentences needs none.
    return COUNT if option == "num" and command in ("reconstruct", "complete", "text") else VALUES[option]
