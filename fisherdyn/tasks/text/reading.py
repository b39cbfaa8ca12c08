"""Reading rows of a data set from a local folder or from the hub; all are checked before training."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .sources import Split

Row = dict[str, Any]
ENDINGS = (".jsonl", ".json", ".parquet", ".tsv")


class MissingError(ValueError):
    """A file, model or data set that is missing, damaged or not what it should be; one line, with a remedy."""


def read(split: Split, language: str = "en", folder: Path | None = None) -> list[Row]:
    """Reads all rows of a split.

    Args:
        folder: holds `split.file` with one of ENDINGS: a JSON object a line, SQuAD's nested JSON, the hub's parquet,
            or columns between tabs under their names, without quotes.
            None for the hub, or its cache where the hub is switched off.

    Raises:
        MissingError: the file does not exist, is damaged or empty, or lacks a field; or neither hub nor cache has it.
    """
    if folder is None:
        where = f"data set {split.repository} ({split.config.format(lang=language)})"
        rows = _from_hub(split, language, where)
    else:
        path = find(split, language, folder)
        where = str(path)
        rows = _from_file(path)
    if not rows:
        raise MissingError(f"{where}: expected rows, found none")
    missing = [field for field in split.fields if any(row.get(field) is None for row in rows)]
    if missing:
        raise MissingError(
            f"{where}: expected rows with {', '.join(split.fields)}; {', '.join(missing)} missing in some"
        )
    return rows


def find(split: Split, language: str, folder: Path) -> Path:
    """The file of a split in a folder.

    Raises:
        MissingError: the folder or the file does not exist.
    """
    if not folder.is_dir():
        raise MissingError(f"--data {folder}: no such folder")
    stem = split.file.format(lang=language)
    for ending in ENDINGS:
        if (path := folder / f"{stem}{ending}").is_file():
            return path
    raise MissingError(f"--data {folder}: has no {stem}{'|'.join(ENDINGS)}")


def _from_file(path: Path) -> list[Row]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            return parquet.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".tsv":
            return list(csv.DictReader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE))
        if path.suffix == ".jsonl":
            return [_row(json.loads(line)) for line in text.splitlines() if line.strip()]
        return list(_flattened(json.loads(text)))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise MissingError(f"{path}: damaged ({first_line(error)}); get it again") from error


def _row(value: Any) -> Row:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value


def _flattened(content: Any) -> Iterator[Row]:
    """SQuAD's nested articles, paragraphs and questions as flat rows, as the hub has them; a list is rows already."""
    if isinstance(content, list):
        yield from map(_row, content)
        return
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = {
                    "text": [answer["text"] for answer in qa["answers"]],
                    "answer_start": [answer["answer_start"] for answer in qa["answers"]],
                }
                yield {
                    "id": qa["id"],
                    "context": paragraph["context"],
                    "question": qa["question"],
                    "answers": answers,
                }


def _from_hub(split: Split, language: str, where: str) -> list[Row]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(f"{where} needs datasets: pip install 'fisherdyn[data]'") from error
    with loading(where, "connect once, or give a folder with --data DIR"):
        config = split.config.format(lang=language)
        return datasets.load_dataset(split.repository, config, split=split.split, revision=split.revision).to_list()


@contextmanager
def loading(what: str, remedy: str) -> Iterator[None]:
    """Turns any error of a hub, a cache or a damaged file into one line: what cannot be loaded, why, and the remedy.

    Unless it is switched off, the hub's client retries for about half a minute; its log is silenced meanwhile.

    Raises:
        MissingError: in place of any other error.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except MissingError:
        raise
    except Exception as error:  # safetensors, pickle, hub, network and configuration errors share no base class
        raise MissingError(f"{what}: cannot be loaded ({first_line(error)}); {remedy}") from error
    finally:
        logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or else the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def check_labels(rows: Sequence[Row], classes: int, where: str) -> None:
    """Refuses labels that are not among the classes, such as -1 for hidden ones."""
    wrong = [row["label"] for row in rows if row["label"] not in range(classes)]
    if wrong:
        raise MissingError(f"{where}: expected labels 0 to {classes - 1}, found {wrong[0]!r} ({len(wrong)} such rows)")
