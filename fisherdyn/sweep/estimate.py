"""What a study will cost, before anything runs: its runs, their steps, and a rough number of GPU hours.

Nothing here was measured on a GPU. The estimate counts floating-point operations, 2 a weight and token forward, as many for
the gradients of activations, as many again for those of weights where all weights are trained, and divides by what a float32
A100 is assumed to sustain. It is an upper bound for schedules, which need no gradient below the lowest open layer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .recipes import Recipe
from .studies import Run, Settings

ASSUMED_FLOPS = 8e12
"""Of a second: 40 % of an A100's float32 peak. Not measured."""
BASE_WEIGHTS = 85e6
"""Of the encoder of mBERT, XLM-R and mDeBERTa base, embeddings left out: 12 layers x 12 x 768^2."""
WORLDS_WEIGHTS = 12 * 64 * (4 * 64 + 2 * 128)
PROBED = 256
"""Examples that tr(F) is measured on."""


def encoder_weights(model: str) -> float:
    """Weights of the encoder's blocks; a folder's are counted from its config.json."""
    try:
        config = json.loads((Path(model) / "config.json").read_text())
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        return float(config["num_hidden_layers"] * hidden * (4 * hidden + 2 * inner))
    except (OSError, ValueError, KeyError):
        return BASE_WEIGHTS


def gpu_hours(settings: Settings, recipe: Recipe, weights: float) -> float:
    """Of one run: training, tr(F) and development metric at every record, and the test sets at every evaluation."""
    full = settings.options.get("tuning") == "full"
    records, evaluations = len(settings.record_steps()), len(settings.evaluation_steps())
    passes = settings.steps * recipe.batch * (6 if full else 4)
    passes += records * (4 * PROBED + 2 * recipe.dev) + evaluations * 2 * recipe.test
    return passes * weights * recipe.tokens / ASSUMED_FLOPS / 3600


def listing(runs: Sequence[Run], settings: Settings, recipe: Recipe) -> str:
    """One line a run, and what they come to."""
    worlds = settings.task.startswith("world")
    weights = WORLDS_WEIGHTS if worlds else encoder_weights(str(settings.options.get("model", "")))
    width = max([12, *(len(run.schedule) for run in runs)])
    lines = [f"{'schedule':{width}}  seed  what is trained  examples  lr        k      steps      GPU hours"]
    hours = steps = 0.0
    for run in runs:
        own = settings.of(run)
        cost = gpu_hours(own, recipe, weights)
        k = "-" if run.policy in ("", "standard") and not run.order else own.interval
        tuning, examples = own.options.get("tuning", "adapter"), own.options.get("train_examples") or "all"
        lines.append(
            f"{run.schedule:{width}}  {run.seed:4}  {tuning:15}  {examples:>8}  {own.lr:<8g}  {k:<5}  "
            f"{own.steps:<9}  {cost:.2g}"
        )
        hours, steps = hours + cost, steps + own.steps
    lines.append(f"{len(runs)} runs, {steps:.0f} steps, about {hours:.2g} GPU hours")
    lines.append(
        f"The estimate is not a measurement: 4 FLOP a weight and token in training (6 where all are "
        f"trained), {weights / 1e6:.3g} M encoder weights, {recipe.tokens} tokens an example (assumed), "
        f"{ASSUMED_FLOPS / 1e12:g} TFLOP/s (assumed: a float32 A100)."
    )
    if settings.skipped:
        lines.append(f"Skipped: {settings.skipped}.")
    return "\n".join(lines)
