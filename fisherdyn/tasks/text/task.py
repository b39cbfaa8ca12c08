"""What the paper's tasks share: a model from the hub or a folder, English training data, other languages to test in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from ...layers import Layers
from ...settings import Metric
from .. import tuning as tunings
from ..batches import Batch, ShuffledBatches, in_order, subsample
from .languages import LanguageAdapters
from .reading import MissingError, Row, read, told
from .sources import MODELS, Split

SOURCE = "en"
TRAIN, DEVELOPMENT, TEST, PROBE = range(4)
"""Which random subsample is drawn: two of them never share random numbers."""


class TextTask:
    """A task of the paper.

    Args:
        model: a name in `sources.MODELS`, another repository, or a folder with a model and its tokenizer.
        data: folder with the data (`sources` has the file names); default: the hub.
        adapters: folder with language adapters, a sub-folder a language; default: AdapterHub's for this model.
        tuning: what is trained: "adapter" (MAD-X), "lora" or "full".
        languages: targets; by default the paper's, without those that have no language adapter, which are `skipped`.
        train_examples, dev_examples, test_examples: random subsamples of this size; default: all there is.
        probe_examples: training inputs, their labels unused, that tr(F) is measured on.
        batch: examples a training step.
        max_length: tokens; what is longer is cut (in extraction: read window by window).
        reduction: hidden size over the task adapter's bottleneck.
        seed: of the subsamples.

    Raises:
        ValueError: an unknown tuning or language, or a language that has no adapter though it was asked for.
        MissingError: a folder is not there.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[Split, Split, Split]]
    """Training and development, in English, and test."""
    known: ClassVar[tuple[str, ...]]
    """Every language that the test set has beside English."""
    targets_of_paper: ClassVar[tuple[str, ...]]
    head: ClassVar[Any]
    """The class that makes the model, of transformers' AutoModelFor..."""
    num_labels: ClassVar[int] = 2
    longest: ClassVar[int] = 128
    """Tokens, by default."""
    source = SOURCE
    distances: ClassVar[Mapping[str, float]] = {}

    def __init__(
        self,
        model: str = "xlm-roberta-base",
        data: str | Path | None = None,
        adapters: str | Path | None = None,
        tuning: str = tunings.ADAPTER,
        languages: Sequence[str] = (),
        train_examples: int | None = None,
        dev_examples: int | None = None,
        test_examples: int | None = None,
        probe_examples: int = 256,
        batch: int = 32,
        max_length: int | None = None,
        reduction: int = 16,
        seed: int = 0,
    ) -> None:
        tunings.check(tuning)
        self.model, self.tuning, self.reduction, self.seed = model, tuning, reduction, seed
        self.repository: str = MODELS[model][0] if model in MODELS else model
        self.revision: str | None = MODELS[model][1] if model in MODELS else None
        if Path(model).parts[0] in ("/", ".", "..", "~") and not Path(model).is_dir():
            raise MissingError(f"--model {model}: no such folder")
        self.data = Path(data) if data else None
        self.language_adapters = LanguageAdapters(model, Path(adapters) if adapters else None)
        self.sizes = {TRAIN: train_examples, DEVELOPMENT: dev_examples, TEST: test_examples, PROBE: probe_examples}
        self.batch, self.max_length = batch, max_length or self.longest
        self.targets, self.skipped = self._choose_targets(tuple(languages))

    def _choose_targets(self, asked: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Languages to test in, and those left out with the reason."""
        if unknown := [code for code in asked if code not in self.known]:
            raise ValueError(
                f"unknown language {', '.join(unknown)} of task {self.name}: choose from {', '.join(self.known)}"
            )
        wanted = asked or self.targets_of_paper
        if self.tuning != tunings.ADAPTER:
            return wanted, {}
        gaps = [code for code in (SOURCE, *wanted) if code not in self.language_adapters]
        if SOURCE in gaps or (asked and gaps):
            raise ValueError(
                f"no language adapter of {self.model} for {', '.join(gaps)}: give one with --adapters DIR, or choose "
                f"--tuning {tunings.LORA}"
            )
        return tuple(code for code in wanted if code not in gaps), dict.fromkeys(gaps, "no language adapter")

    # ---- what a study asks for ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Reads all that a run will read: data, tokenizer, weights, language adapters.

        Raises:
            MissingError: what is missing or damaged, and what to do.
        """
        for which, language in ((TRAIN, SOURCE), (DEVELOPMENT, SOURCE), *((TEST, code) for code in self.targets)):
            self.rows(which, language)
        self.build_model(0)

    def build_model(self, seed: int) -> nn.Module:
        """The pretrained model with a fresh head and what the tuning adds; the global random state is left as it was.

        Head, and so always trained: what is above the encoder, and what the checkpoint has no weights for (XLM-R's
        pooler).
        """
        _ = self.tokenizer
        with (
            torch.random.fork_rng(),
            _quiet(),
            told(f"model {self.model}", "connect once, or give a folder with --model"),
        ):
            torch.manual_seed(seed)
            model, info = self.head.from_pretrained(
                self.repository,
                revision=self.revision,
                num_labels=self.num_labels,
                weights_only=True,
                output_loading_info=True,
            )
            encoder = model.base_model_prefix + "."
            fresh = {name for name, _ in model.named_parameters() if not name.startswith(encoder)}
            tunings.attach(
                model,
                self.tuning,
                fresh | set(info["missing_keys"]),
                source=SOURCE,
                reduction=self.reduction,
                languages=lambda one: self.language_adapters.add_to(one, (SOURCE, *self.targets)),
            )
        return model

    def layers(self, model: nn.Module) -> Layers:
        return tunings.layers_of(model, self.tuning)

    def train_loader(self, seed: int) -> ShuffledBatches:
        data = self._train
        return ShuffledBatches(len(data), self.batch, seed, lambda rows: self.collate([data[i] for i in rows]))

    def probe_loader(self) -> list[Batch]:
        """Batches without labels, drawn from the training data, which is what the paper measures tr(F) on."""
        wanted = min(self.sizes[PROBE] or 1, len(self._train))
        rows = torch.from_numpy(subsample(len(self._train), wanted, self.seed, PROBE))

        def collate(some: Tensor) -> Batch:
            batch = self.collate([self._train[i] for i in some])
            return {name: x for name, x in batch.items() if name in self.tokenizer.model_input_names}

        return list(in_order(rows, self.batch, collate))

    def evaluate_source(self) -> Metric:
        return self.metric(self.rows(DEVELOPMENT), SOURCE)

    def evaluate(self) -> dict[str, Metric]:
        return {code: self.metric(self.rows(TEST, code), code) for code in self.targets}

    # ---- what each task says itself -------------------------------------------------------------------------------

    def examples(self, rows: list[Row]) -> Sequence[Any]:
        """What is shuffled and collated in training: the rows, or their windows."""
        return rows

    def collate(self, examples: list[Any]) -> Batch:
        """A batch with what is to be predicted."""
        raise NotImplementedError

    def metric(self, rows: list[Row], code: str) -> Metric:
        raise NotImplementedError

    def validate(self, rows: list[Row], where: str) -> None:
        """Refuses rows that the task cannot use."""

    # ---- tokens and rows ------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        with _quiet(), told(f"tokenizer of {self.model}", "connect once, or give a folder with --model"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.repository, revision=self.revision)
        if not tokenizer.is_fast:
            raise MissingError(f"tokenizer of {self.model}: expected a fast one (tokenizer.json), which knows offsets")
        return tokenizer

    def rows(self, which: int, language: str = SOURCE) -> list[Row]:
        """A split, or the random subsample of it that was asked for."""
        split = self.splits[which]
        rows = read(split, language, self.data)
        where = split.file.format(lang=language)
        self.validate(rows, where)
        try:
            chosen = subsample(len(rows), self.sizes[which], self.seed, which)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return [rows[i] for i in chosen]

    @cached_property
    def _train(self) -> Sequence[Any]:
        return self.examples(self.rows(TRAIN))


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers warns of every head that is new; here all of them are."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
