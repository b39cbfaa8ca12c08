"""Makes the shipped encoder and its language adapters: `python -m fisherdyn.tasks.world.pretrain`.

First a BERT with 12 layers learns to predict masked words and next sentences in all ten languages at once. Then the
encoder is frozen, and for each language a MAD-X adapter is trained on text in that language alone (Pfeiffer et al. 2020,
"MAD-X"). No label of any task is used.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import torch
import transformers
from adapters import SeqBnConfig
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import BertConfig, BertForPreTraining, get_linear_schedule_with_warmup

from . import grammar as g
from .corpus import Corpus
from .encoder import (
    ENCODER,
    LANGUAGE_REDUCTION,
    RECIPE,
    WORLD_SEED,
    CheckpointError,
    adapter_state,
    fill,
    language_file,
    load,
)
from .languages import PAD, Languages, pack_pairs

PEAK_LR, WARMUP, BATCH = 2e-3, 150, 128
MASKED = 0.25
SORTED = 8
"""Batches that are sampled together and sorted by length."""
NEXT_SENTENCE_FROM = 0.7
"""Share of the encoder's steps after which half of the second sentences come from other documents."""
ADAPTER_LR, ADAPTER_BATCH = 2e-4, 64


def build_encoder(languages: Languages, layers: int = 12, hidden: int = 64, init: float = 0.04) -> BertForPreTraining:
    """An untrained BERT, without dropout because no text is repeated."""
    return BertForPreTraining(
        BertConfig(
            vocab_size=len(languages.vocabulary),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=PAD,
            initializer_range=init,
            attn_implementation="eager",
        )
    )


def batches(
    corpus: Corpus, steps: int, batch: int, seed: list[int], next_sentence_from: float = 0.0
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields `steps` fresh batches, each of documents of similar length.

    In the first share `next_sentence_from` of the steps all second sentences belong to the first.
    """
    rng = np.random.default_rng(seed)
    for first in range(0, steps, SORTED):
        broken = 0.5 if first >= next_sentence_from * steps else 0.0
        documents = corpus.batch(batch * SORTED, rng, MASKED, broken)
        length = documents["attention_mask"].sum(axis=1)
        order = np.argsort(length, kind="stable").reshape(SORTED, batch)
        for rows in rng.permutation(order)[: steps - first]:
            longest = length[rows].max()
            batch_arrays = {name: a[rows, :longest] if a.ndim == 2 else a[rows] for name, a in documents.items()}
            yield {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in batch_arrays.items()}


def pretraining_loss(model: BertForPreTraining, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of masked words, at masked positions alone, plus that of the next-sentence label."""
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    hidden, pooled = model.bert(**inputs)[:2]
    masked = batch["labels"] >= 0
    words, is_next = model.cls.predictions(hidden[masked]), model.cls.seq_relationship(pooled)
    return cross_entropy(words, batch["labels"][masked]) + cross_entropy(is_next, batch["next_sentence_label"])


def train(
    model: BertForPreTraining, text: Iterator[dict[str, torch.Tensor]], steps: int, lr: float, title: str
) -> list[float]:
    """Trains all trainable weights with AdamW, warm-up and linear decay; returns the loss of every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, min(WARMUP, steps // 4), steps)
    model.train()
    losses = []
    for batch in (bar := tqdm(text, total=steps, desc=title, mininterval=5)):
        loss = pretraining_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % 20 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-100:]):.3f}", refresh=False)
    return losses


def make_encoder(languages: Languages, out: Path, steps: int, seed: int) -> tuple[BertForPreTraining, dict[str, Any]]:
    """Trains the encoder and writes it; returns it with its entry in the recipe."""
    started = time.time()
    torch.manual_seed(seed)
    encoder = build_encoder(languages)
    text = batches(Corpus(languages), steps, BATCH, [seed, 2], NEXT_SENTENCE_FROM)
    losses = train(encoder, text, steps, PEAK_LR, "encoder")
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    save_file({name: w.contiguous() for name, w in encoder.state_dict().items() if name not in tied}, out / ENCODER)
    encoder.config.save_pretrained(out)
    return encoder, {
        "seed": seed,
        "world_seed": WORLD_SEED,
        "steps": steps,
        "seconds": round(time.time() - started),
        "final_loss": round(_last_tenth(losses), 4),
        "retrieval_at_1_of_500": retrieval(encoder, languages),
    }


def load_encoder(languages: Languages, folder: Path) -> BertForPreTraining:
    """Reads a folder's encoder, with its language-model head."""
    encoder = build_encoder(languages)
    path = folder / ENCODER
    fill(encoder, load(path), path)
    return encoder


def make_adapter(encoder: BertForPreTraining, corpus: Corpus, code: str, out: Path, steps: int) -> dict[str, Any]:
    """Trains and writes one language's adapter, with all else frozen; returns its entry in the recipe.

    All randomness depends on the language alone, so that adapters can be made one by one.
    """
    started = time.time()
    row = corpus.languages.index(code)
    torch.manual_seed(row)
    encoder.add_adapter(code, config=SeqBnConfig(reduction_factor=LANGUAGE_REDUCTION))
    encoder.train_adapter(code)
    encoder.cls.requires_grad_(False)
    text = batches(corpus, steps, ADAPTER_BATCH, [WORLD_SEED, 3, row])
    losses = train(encoder, text, steps, ADAPTER_LR, f"adapter {code}")
    save_file(adapter_state(encoder, code), out / language_file(code))
    return {"steps": steps, "seconds": round(time.time() - started), "final_loss": round(_last_tenth(losses), 4)}


def _last_tenth(losses: list[float]) -> float:
    return float(np.mean(losses[-max(1, len(losses) // 10) :]))


@torch.no_grad()
def retrieval(encoder: BertForPreTraining, languages: Languages, n: int = 500, layer: int = 8) -> dict[str, float]:
    """Translation retrieval: language -> share of its sentences whose nearest neighbour in the source is a translation.

    Sentences are embedded by the mean of a layer over tokens, and compared by the cosine.
    """
    meanings = g.sample_meanings(n, np.random.default_rng([WORLD_SEED, 4]))
    nothing = np.zeros((n, 0), dtype=np.int64)
    encoder.eval()

    def embed(row: int) -> torch.Tensor:
        packed = {k: torch.from_numpy(v) for k, v in pack_pairs(languages.speak(meanings, row), nothing).items()}
        hidden = encoder(**packed, output_hidden_states=True).hidden_states[layer]
        mask = packed["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    source = embed(0)
    source_sentences = languages.speak(meanings, 0)
    accuracy = {}
    for row in range(1, len(languages.codes)):
        nearest = (embed(row) @ source.T).argmax(1)
        # Sentences are compared and not rows, because different meanings can be said by the same sentence.
        is_translation = (source_sentences[nearest.numpy()] == source_sentences).all(1)
        accuracy[languages.codes[row]] = float(is_translation.mean())
    return accuracy


def environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "adapters": adapters.__version__,
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fisherdyn.tasks.world.pretrain", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="steps of the encoder (default: %(default)s)")
    parser.add_argument("--adapter-steps", type=int, default=150, help="steps a language adapter (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and text (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    parser.add_argument("--adapters", metavar="so,ka,...", help="only these, for the encoder that --out holds")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the shipped one is beside this file")
    args = parser.parse_args(argv)
    if min(args.steps, args.adapter_steps, args.threads) < 1:
        parser.error("--steps, --adapter-steps and --threads must be at least 1")

    languages = Languages(WORLD_SEED)
    codes = languages.codes if args.adapters is None else args.adapters.split(",")
    if unknown := set(codes) - set(languages.codes):
        parser.error(
            f"--adapters: unknown language {', '.join(sorted(unknown))}: choose from {', '.join(languages.codes)}"
        )
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    recipe_file = args.out / RECIPE
    recipe = json.loads(recipe_file.read_text()) if recipe_file.exists() else {}
    options = {name: value for name, value in vars(args).items() if value is not None and name != "out"}
    arguments = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    command = " ".join(["python -m fisherdyn.tasks.world.pretrain", *arguments])
    if args.adapters is None:
        encoder, facts = make_encoder(languages, args.out, args.steps, args.seed)
        recipe["encoder"] = {"command": command, **facts, "environment": environment()}
    else:
        try:
            encoder = load_encoder(languages, args.out)
        except CheckpointError as error:
            parser.error(str(error))
    adapters.init(encoder)
    for code in codes:
        facts = make_adapter(encoder, Corpus(languages, only=code), code, args.out, args.adapter_steps)
        recipe[f"adapter {code}"] = {"command": command, **facts}
        recipe_file.write_text(json.dumps(recipe, indent=1) + "\n")
    print(f"{args.out}: {', '.join(recipe)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
