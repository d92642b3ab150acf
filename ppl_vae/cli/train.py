"""`ppl-vae train`."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from ppl_vae import evaluation, rates, report, runs, specs, training
from ppl_vae.cli.common import (
    about,
    absolute,
    batch_on,
    check_evaluation,
    check_steps,
    default_pairs,
    print_codes,
    print_evaluation,
)
from ppl_vae.cli.text import told
from ppl_vae.data import Binarisation, Text, load_named
from ppl_vae.pair import Pair
from ppl_vae.pairs.quantised import QuantisedPair
from ppl_vae.parallel import Ranks, started_by_torchrun
from ppl_vae.precision import Precision
from ppl_vae.run_folder import RunFolder
from ppl_vae.seeds import check_seed
from ppl_vae.stages import fit_stages, joined
from ppl_vae.training import Compile, OnNonFinite, Record

__all__ = ["train"]

MAY_DIFFER = (
    "data_root",
    "device",
    "num_particles",
    "num_test",
    "num_workers",
    "out",
    "overwrite",
    "progress",
    "resume",
)
"""Settings with which a run may be taken up again other than those that it began with."""


def train(
    pair: str | None = None,
    objective: str = "elbo",
    data: str = "digits",
    data_root: str | None = None,
    binarisation: Binarisation | None = None,
    data_seed: int = 0,
    steps: int = 5000,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    schedule: str = "constant",
    clip_norm: float | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    valid: int = 0,
    patience: int | None = None,
    aggressive: bool = False,
    pretrain: int = 0,
    seed: int = 0,
    num_particles: int = 5000,
    num_test: int | None = None,
    device: str = "auto",
    compile: Compile = "auto",
    precision: Precision = "float32",
    deterministic: bool = False,
    num_workers: int = 0,
    on_nonfinite: OnNonFinite = "stop",
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    out: str = "run",
    resume: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Train one pair with one objective, evaluate it, and write a run folder.

    With `torchrun --nproc-per-node N -m ppl_vae train ...` N processes share each batch.

    A run that was stopped, by Ctrl-C, a signal, a kill or a full disk, goes on with `ppl-vae train --resume RUN`.

    Args:
        pair: a pair, `VAE(latent_dim=2)` or `my_file.py:MyPair`.
        objective: an objective, `elbo`, `iwae:50` or `RenyiELBO(alpha=0.5, num_particles=5)`.
        data: digits, mnist, binarised-mnist, fashion-mnist, omniglot, cifar10, frey-faces; a file of arrays; or a
            folder of .npy files, train*.npy and test*.npy, of which the first stay on disk; or data with their
            classes, `labelled(mnist)`; or sentences, `text('data/ptb', words=10000)` from a folder of three files, or
            `text(grammar)`; or data with captions: digits composed as they are asked for,
            `scenes(mnist, size=28, digit_size=14)`, or MS COCO from the folder of its downloads,
            `coco('data/coco', size=32, cache='data/cache')`.
        data_root: folder of the data sets; the environment variable PPL_VAE_DATA otherwise.
        binarisation: dynamic, static or none; the data set's usual one by default.
        data_seed: of static binarisation and of the test data's one draw.
        steps: gradient steps; of each stage, for a pair that is trained in stages (VQVAE: codes, then prior).
        batch_size: data per step.
        learning_rate: of Adam.
        schedule: of the learning rate: constant, cosine:WARMUP, step:EVERY:FACTOR, plateau:FACTOR:PATIENCE or burda.
        clip_norm: scale gradients down to this norm.
        accumulate: so many batches a step, one after the other.
        ema: decay of a moving average of the weights, such as 0.999; the run ends with the average.
        valid: hold out the last so many training data (of images with captions so many images, with all their
            captions; of sentences the first so many of the file for it); the run ends with the weights that are best
            there, and KL, mutual information and active units of these data are shown as it goes.
        patience: stop after so many points of the learning curve without a better bound on the data held out.
        aggressive: train the guide to convergence before each step of the model, as long as the mutual information on
            the data held out rises: against posterior collapse.
        pretrain: so many steps as an autoencoder first, of which the guide alone is kept: against posterior collapse.
        seed: of the initial weights, the minibatches and the noise.
        num_particles: of the importance-sampled log-likelihood.
        num_test: evaluate on so many test data; all by default.
        device: auto, cpu, cuda or cuda:N.
        compile: auto, off, inductor or (on CUDA) cudagraph.
        precision: float32, or bf16 for the products of the networks.
        deterministic: refuse operations that are not deterministic.
        num_workers: processes that read data on disk ahead.
        on_nonfinite: stop or skip, at a loss or gradient that is NaN or infinite.
        checkpoint_every: steps; by default by the clock, in under one percent of the time.
        tensorboard: write the learning curve for TensorBoard too.
        out: the run folder.
        resume: a run folder that is to go on (or one of its checkpoints); its settings are taken from there.
        overwrite: replace a folder that is there already.
        progress: show a progress bar.
    """
    config = {name: value for name, value in locals().items() if name != "resume"}
    check_steps(steps)
    check_evaluation(seed, num_particles)
    with started_by_torchrun(device):
        if resume is None and Ranks().is_first:
            runs.check_free(out, overwrite)
        check_seed("data_seed", data_seed)
        dataset = load_named(data, binarisation=binarisation, root=data_root, seed=data_seed)
        config |= {"pair": pair or default_pairs(dataset)[0], "binarisation": dataset.binarisation}
        config["data"] = absolute(data, data_root)
        config["data_root"] = data_root and str(Path(data_root).resolve())
        bound, held_out = specs.make_objective(objective), None
        dataset = dataset.subset(num_test=num_test)
        if not 0 <= valid < len(dataset.train):
            raise ValueError(f"valid: got {valid}, expected 0 to {len(dataset.train) - 1}: less than the training data")
        if valid:
            dataset, held_out = dataset.hold_out(valid)
        per_pass = max(1, training.steps_of(1, dataset, max(1, batch_size * accumulate)))
        rate = rates.parse(schedule, steps=steps, steps_per_pass=per_pass)
        torch.manual_seed(seed)
        trained = specs.maker(config["pair"], dataset)()
        with _folder(config, resume, trained) as folder:
            with _recording(folder, tensorboard) as on_record:
                stages = fit_stages(
                    trained,
                    dataset,
                    bound,
                    steps=steps,
                    batch_size=batch_size,
                    learning_rate=learning_rate,
                    schedule=rate,
                    clip_norm=clip_norm,
                    accumulate=accumulate,
                    ema=ema,
                    valid=held_out,
                    patience=patience,
                    aggressive=aggressive,
                    pretrain_steps=pretrain,
                    seed=seed,
                    device=device,
                    compile=compile,
                    precision=precision,
                    deterministic=deterministic,
                    num_workers=num_workers,
                    on_nonfinite=on_nonfinite,
                    checkpoints=folder.checkpoints,
                    checkpoint_every=checkpoint_every,
                    resume=_point(resume),
                    progress=progress,
                    on_record=on_record,
                )
            test = batch_on(trained.reference().device, dataset.test_batch())
            reached = evaluation.evaluate(trained, *test, objective=bound, num_particles=num_particles, seed=seed)
            if not Ranks().is_first:
                return
            history = joined(stages)
            folder.finish(history)
            result = {"data": dataset.describe(), "evaluation": reached.as_dict(), "history": history.as_dict()}
            if isinstance(dataset, Text):
                result["perplexity"] = told(trained, dataset, reached, folder.path).as_dict()
            if isinstance(trained, QuantisedPair):
                usage = evaluation.code_usage(trained, *test)
                result["codes"] = {site: found.as_dict() for site, found in usage.items()}
                print_codes(usage)
            runs.save_pair(folder.path, trained)
            curves = {f"{objective}, {name}" if name else objective: done.curve for name, done in stages.items()}
            report.learning_curves(curves, folder.path / "learning_curve.png")
            report.pictures(trained, test, type(trained).__name__, folder.path)
            environment = report.environment(history.device)
            report.write_json({**result, "environment": environment}, folder.path / "results.json")
        print_evaluation(reached)
        print(f"{about(dataset, num_particles, reached)}\nRun: {folder.path}")


@contextmanager
def _folder(config: dict[str, Any], resume: str | None, pair: Pair) -> Iterator[RunFolder]:
    """A new run folder, or the one that is to go on; of several processes the first writes to it."""
    path, ranks = Path(config["out"]) if resume is None else runs.folder_of(resume), Ranks()
    if not ranks.is_first:
        ranks.gather(None)  # until it is there
        yield RunFolder(path)
        return
    with _opened(path, config, resume is not None) as folder:
        _check_space(path, pair, 3 + (config["ema"] is not None) + bool(config["valid"]))
        report.write_json(report.environment(training.resolve_device(config["device"])), path / "environment.json")
        ranks.gather(None)
        yield folder


@contextmanager
def _opened(path: Path, config: dict[str, Any], is_there: bool) -> Iterator[RunFolder]:
    if not is_there:
        with RunFolder.create(path, config, config["overwrite"]) as folder:
            yield folder
        return
    with RunFolder.reopen(path) as folder:
        before = yaml.safe_load((folder.path / runs.CONFIG).read_text())
        differ = [k for k in config if k not in MAY_DIFFER and k in before and before[k] != config[k]]
        if differ:
            got, expected = ({k: c[k] for k in differ} for c in (config, before))
            raise ValueError(f"resume: got {got}, expected {expected} as in {folder.path}; leave those options out")
        yield folder


def _point(resume: str | None) -> bool | str:
    """What `fit` goes on from: nothing, the newest checkpoint, or the one named."""
    return resume if resume is not None and Path(resume).suffix == ".pt" else resume is not None


def _check_space(folder: Path, pair: Pair, copies: int) -> None:
    """Refuse a disk that has no room for the run's checkpoints, before the first step.

    Args:
        folder: of the run.
        pair: whose weights they hold.
        copies: how often: with Adam's two moments, and an average and the best weights where wanted.

    Raises:
        ValueError: less is free than four of them (three are kept while a new one is written).
    """
    weights = sum(t.numel() * t.element_size() for t in pair.state_dict().values())
    needed, free = 4 * copies * weights, shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"out: got {free / 1e6:.0f} MB free at {folder}, expected at least {needed / 1e6:.0f} MB for checkpoints; "
            "free some space or choose another folder with --out"
        )


@contextmanager
def _recording(folder: RunFolder, tensorboard: bool) -> Iterator[Callable[[Record], None]]:
    """What writes points of the learning curve to the folder, and for TensorBoard where wanted."""
    if not Ranks().is_first:
        yield lambda record: None
        return
    if not tensorboard:
        yield folder.record
        return
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard: got no package tensorboard, expected it to be installed; pip install 'ppl_vae[tensorboard]'"
        ) from error
    with SummaryWriter(folder.path / "tensorboard") as writer:

        def record(record: Record) -> None:
            folder.record(record)
            for name in ("bound", "valid", "gradient_norm", "learning_rate", "skipped"):
                if (value := getattr(record, name)) is not None:
                    writer.add_scalar(name, value, record.step)

        yield record
