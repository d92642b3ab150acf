"""How time and memory of a step grow with the batch (k = 1) and with the particles (batch 20)."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import contestants
import torch
from contestants import Step
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from timing import Entry, block_ms, finish, forget_compiled, interleave, prepare
from torch import Tensor
from workloads import WORKLOADS, Task, Workload

from ppl_vae import SVI, report
from ppl_vae.evaluation.memory import Meter

BATCHES = (16, 64, 256, 1024, 4096)
PARTICLES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
QUICK = (2, 4)
BLOCK_MS = 250
"""A block takes about so long where steps are slow, instead of the steps asked for."""
COLOURS = {"hand": "#D55E00", "ours": "#0072B2"}
"""Of Okabe & Ito's palette, as the package's figures."""

EAGER = {"hand": contestants.hand, "ours": partial(contestants.ours, mode="off")}

MEMORY = {
    "cpu": "bytes of the tensors alive at once in one eager step (forward, backward, Adam) beyond those alive before "
    "it; workspaces inside an operator are not seen, and what Inductor saves is not counted",
    "cuda": "torch.cuda.max_memory_allocated while the step is built and taken, less what was allocated before: "
    "weights, Adam's state and the graph's pool are in it, the data not",
}
MEMORY_LABEL = {"cpu": "tensors alive in an eager step, MiB", "cuda": "peak memory, MiB"}


def sweeps(quick: bool) -> dict[str, list[Workload]]:
    """The workloads of each sweep, by growing size."""
    mlp, burda = WORKLOADS["mlp"], WORKLOADS["burda1"]
    return {
        "batch": [replace(mlp, batch=b) for b in (QUICK if quick else BATCHES)],
        "k": [replace(burda, k=k) for k in (QUICK if quick else PARTICLES)],
    }


def measure(
    images: Tensor, mode: str, *, rounds: int, block: int, warm_steps: int, quick: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Every size of both sweeps, hand-written eager PyTorch beside ours in the given mode.

    Weights are trained once for each sweep and shared by its sizes, so that all are timed in the trained state.
    """
    makers = {"hand": contestants.hand, "ours": partial(contestants.ours, mode=mode)}
    kind = images.device.type
    result: dict[str, Any] = {"ours": f"ours-{mode}", "memory": MEMORY[kind], "memory_label": MEMORY_LABEL[kind]}
    for axis, workloads in sweeps(quick).items():
        base = WORKLOADS["mlp" if axis == "batch" else "burda1"]
        weights = trained(Task.of(base, images), warm_steps)
        rows = []
        for workload in workloads:
            forget_compiled()
            task = Task.of(workload, images, weights)
            rows.append({"batch": workload.batch, "k": workload.k, **_point(task, makers, rounds, block)})
            say(f"  {axis} = {rows[-1][axis]}: {_text(rows[-1])}")
        result[axis] = {"workload": base.name, "about": base.about, "rows": rows}
    return result


def trained(task: Task, steps: int) -> dict[str, Tensor]:
    """The pair's weights after so many steps."""
    pair = task.pair()
    optim = torch.optim.Adam(pair.parameters(), lr=task.learning_rate, fused=True)
    svi = SVI(pair, optim, task.workload.objective(), compile="off")
    for i in range(steps):
        svi.update(task.batches[i % len(task.batches)])
    return {name: value.cpu() for name, value in pair.state_dict().items()}


def _point(task: Task, makers: Mapping[str, Callable[[Task], Step]], rounds: int, block: int) -> dict[str, Any]:
    entries: dict[str, Entry] = {}
    memory: dict[str, int | None] = {}
    for name, make in makers.items():
        before = _cuda_reset(task.device)
        entries[name] = prepare(make, task, warm_steps=5)
        if task.device.type == "cuda":
            memory[name] = torch.cuda.max_memory_allocated(task.device) - before
        else:
            memory[name] = tensor_bytes(EAGER[name], task)
    running = [entry.step for entry in entries.values() if entry.step and entry.status == "ok"]
    slowest = max((block_ms(step, 1, task.device) for step in running), default=1.0)
    interleave(entries, rounds, max(1, min(block, int(BLOCK_MS / slowest))), task.device)
    return {name: entry.as_dict(entries["hand"]) | {"peak_bytes": memory[name]} for name, entry in entries.items()}


def tensor_bytes(make: Callable[[Task], Step], task: Task) -> int:
    """The most bytes of new tensors alive at once in an eager step."""
    step = make(task)
    for _ in range(2):
        finish(step(), task.device)
    with Meter() as meter:
        step()
    return meter.peak


def _cuda_reset(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _text(row: Mapping[str, Any]) -> str:
    parts = []
    for name in ("hand", "ours"):
        entry = row[name]
        time = f"{entry['ms_per_step']['median']:.2f} ms" if entry["status"] == "ok" else entry["status"]
        parts.append(f"{name} {time}, {(entry['peak_bytes'] or 0) / 2**20:.1f} MiB")
    return "; ".join(parts)


def plot(result: Mapping[str, Any], path: Path, title: str) -> Path:
    """Time and peak memory of a step over batch and particles, on logarithmic axes."""
    figure = Figure(figsize=(9.0, 6.4), dpi=128, layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    labels = {"batch": "batch (k = 1, 784-400-400-20)", "k": "particles k (batch 20, 784-200-200-50)"}
    for column, axis in enumerate(labels):
        for name, label in (("hand", "PyTorch by hand, eager"), ("ours", result["ours"])):
            rows = [row for row in result[axis]["rows"] if row[name]["status"] == "ok"]
            sizes = [row[axis] for row in rows]
            times = [row[name]["ms_per_step"] for row in rows]
            style = {"color": COLOURS[name], "linewidth": 1.6, "marker": "o", "markersize": 3.5}
            panels[0, column].plot(sizes, [t["median"] for t in times], label=label, **style)
            low, high = [t["q1"] for t in times], [t["q3"] for t in times]
            panels[0, column].fill_between(sizes, low, high, color=COLOURS[name], alpha=0.18, linewidth=0)
            panels[1, column].plot(sizes, [row[name]["peak_bytes"] / 2**20 for row in rows], **style)
        panels[1, column].set_xlabel(labels[axis], fontsize=9)
    panels[0, 0].set_ylabel("ms per step: median, quartiles", fontsize=9)
    panels[1, 0].set_ylabel(result["memory_label"], fontsize=9)
    for panel in panels.flat:
        panel.set(xscale="log", yscale="log")
        panel.tick_params(which="both", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#DDDDDD", linewidth=0.6)
    panels[0, 0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return report.write_bytes(content.getvalue(), path)
