"""Language adapters of the pretrained models: where each is, which languages have none, and how they are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .reading import MissingError, loading
from .sources import LANGUAGE_ADAPTERS

CONFIGURATION, WEIGHTS = "adapter_config.json", ("adapter.safetensors", "pytorch_adapter.bin")


class LanguageAdapters:
    """The language adapters of one model.

    Args:
        model: its name on the hub, whose adapters on AdapterHub are used unless a folder is given.
        folder: one sub-folder a language, named by its code, as `model.save_adapter(folder / code, code)` writes it.

    Raises:
        MissingError: there is no such folder.
    """

    def __init__(self, model: str, folder: Path | None = None) -> None:
        self.folder = folder
        if folder is None:
            self.places = LANGUAGE_ADAPTERS.get(model, {})
        elif folder.is_dir():
            self.places = {path.name: str(path) for path in sorted(folder.iterdir()) if path.is_dir()}
        else:
            raise MissingError(f"--adapters {folder}: no such folder")

    def __contains__(self, language: str) -> bool:
        return language in self.places

    def fetch(self, language: str) -> Path:
        """The folder with a language's adapter, downloaded where necessary."""
        place = self.places[language]
        if self.folder is None:
            from huggingface_hub import snapshot_download

            with loading(f"language adapter {place}", "connect once, or give a folder with --adapters DIR"):
                place = snapshot_download(place, allow_patterns=[CONFIGURATION, *WEIGHTS])
        path = Path(place)
        if not (path / CONFIGURATION).is_file() or not any((path / name).is_file() for name in WEIGHTS):
            raise MissingError(
                f"{path}: expected {CONFIGURATION} and {' or '.join(WEIGHTS)}: the adapter is not whole; get it again"
            )
        return path

    def add_to(self, model: Any, languages: Iterable[str]) -> None:
        """Loads the adapters of these languages into a model, invertible ones included, each named by its code."""
        for language in languages:
            path = self.fetch(language)
            with loading(f"language adapter {path}", "it is damaged, or of another model: get it again"):
                model_type = json.loads((path / CONFIGURATION).read_text()).get("model_type")
                if model_type not in (None, model.config.model_type):
                    raise ValueError(f"it was made for a model of type {model_type}, this is {model.config.model_type}")
                model.load_adapter(str(path), load_as=language, with_head=False, use_safetensors=True)
