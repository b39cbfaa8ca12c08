"""Language adapters: where each one is, which languages have none, and how they get into a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .reading import MissingError, told
from .sources import LANGUAGE_ADAPTERS

CONFIGURATION, WEIGHTS = "adapter_config.json", ("adapter.safetensors", "pytorch_adapter.bin")


class LanguageAdapters:
    """The language adapters of one model.

    Args:
        model: its name on the hub; what AdapterHub has for it is used unless a folder is given.
        folder: one sub-folder a language, named by its code, as `model.save_adapter(folder / code, code)` writes it.

    Raises:
        MissingError: there is no such folder.
    """

    def __init__(self, model: str, folder: Path | None = None) -> None:
        self.folder = folder
        if folder is None:
            self.places = LANGUAGE_ADAPTERS.get(model, {})
        elif folder.is_dir():
            self.places = {one.name: str(one) for one in sorted(folder.iterdir()) if one.is_dir()}
        else:
            raise MissingError(f"--adapters {folder}: no such folder")

    def __contains__(self, code: str) -> bool:
        return code in self.places

    def fetch(self, code: str) -> Path:
        """The folder with a language's adapter, downloaded where need be."""
        place = self.places[code]
        if self.folder is None:
            from huggingface_hub import snapshot_download

            with told(f"language adapter {place}", "connect once, or give a folder with --adapters DIR"):
                place = snapshot_download(place, allow_patterns=[CONFIGURATION, *WEIGHTS])
        path = Path(place)
        if not (path / CONFIGURATION).is_file() or not any((path / name).is_file() for name in WEIGHTS):
            raise MissingError(
                f"{path}: expected {CONFIGURATION} and {' or '.join(WEIGHTS)}: the adapter is not whole; get it again"
            )
        return path

    def add_to(self, model: Any, codes: Iterable[str]) -> None:
        """Loads the adapters of these languages, each under its code; invertible ones come along."""
        for code in codes:
            path = self.fetch(code)
            with told(f"language adapter {path}", "it is damaged, or of another model: get it again"):
                made_for = json.loads((path / CONFIGURATION).read_text()).get("model_type")
                if made_for not in (None, model.config.model_type):
                    raise ValueError(f"it was made for a model of type {made_for}, this is {model.config.model_type}")
                model.load_adapter(str(path), load_as=code, with_head=False, use_safetensors=True)
