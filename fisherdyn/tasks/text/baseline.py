"""python -m fisherdyn.tasks.text.baseline: SIB-200 with the encoder as it is, without any training of it.

A logistic regression reads the mean of the encoder's outputs. It is fitted to the source's training set and tested in the
other languages, which is what a study's trained adapters are to be compared with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize

from ..batches import Batches
from ..transfer import DEVELOPMENT, TEST, TEST_BATCH, TRAIN
from .mean_pooling import MeanPoolingClassifier
from .sib200 import SIB200

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the squared weights, for features of variance 1. The source's development set chooses one."""


def fit(x: np.ndarray, y: np.ndarray, classes: int, penalty: float) -> np.ndarray:
    """Weights of the multinomial logistic regression that minimises the mean cross-entropy + penalty / 2 |weights|².

    Args:
        x: (n, features), with a column of ones for the intercept, which is penalised too.
        y: labels (n,).

    Returns:
        (features, classes)
    """
    hot = np.eye(classes)[y]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(x.shape[1], classes)
        logits = x @ weights
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gradient = x.T @ (np.exp(log_p) - hot) / len(x) + penalty * weights
        return -(hot * log_p).sum() / len(x) + penalty / 2 * (weights**2).sum(), gradient.ravel()

    found = minimize(loss, np.zeros(x.shape[1] * classes), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return found.x.reshape(x.shape[1], classes)


def accuracies(task: SIB200) -> dict[str, float]:
    """Language -> accuracy, 0 to 1: the source's on its development set first, then the targets' on their test sets."""
    model, _ = task.pretrained()
    x, y = features(task, model, TRAIN, task.source)
    centre, scale = x.mean(axis=0), x.std(axis=0)

    def standardised(x: np.ndarray) -> np.ndarray:
        return np.c_[(x - centre) / scale, np.ones(len(x))]

    def accuracy(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        return float(((standardised(x) @ weights).argmax(axis=1) == y).mean())

    development = features(task, model, DEVELOPMENT, task.source)
    fitted = [fit(standardised(x), y, task.num_labels, penalty) for penalty in PENALTIES]
    best = max(fitted, key=lambda weights: accuracy(weights, *development))
    targets = {code: accuracy(best, *features(task, model, TEST, code)) for code in task.targets}
    return {task.source: accuracy(best, *development), **targets}


def features(task: SIB200, model: MeanPoolingClassifier, which: int, language: str) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's features of a split (n, hidden), as float64, and its labels (n,)."""
    rows = task.split(which, language)
    model.eval()
    x, y = [], []
    with torch.no_grad():
        for batch in Batches(len(rows), TEST_BATCH, lambda chosen: task.collate([rows[i] for i in chosen])):
            y.append(batch.pop("labels"))
            x.append(model.features(**batch).double())
    return torch.cat(x).numpy(), torch.cat(y).numpy()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fisherdyn.tasks.text.baseline", description=__doc__)
    parser.add_argument("--model", help="as for a study (default: multilingual-e5-small)")
    parser.add_argument("--data", help="folder with SIB-200 (default: the hub)")
    parser.add_argument("--source", help="language that is trained on (default: English)")
    parser.add_argument("--languages", type=lambda text: tuple(text.split(",")), help="targets (default: the paper's)")
    args = parser.parse_args(argv)
    try:
        found = accuracies(SIB200(**{name: value for name, value in vars(args).items() if value is not None}))
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    for language, accuracy in found.items():
        print(f"{language}  {100 * accuracy:.1f}")
    print(f"mean over targets  {100 * float(np.mean(list(found.values())[1:])):.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
