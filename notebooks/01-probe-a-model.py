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
# # Probe a model in five minutes
#
# How much Fisher information does each layer of a network hold, on which inputs, and how does that change while it trains?
#
# **Needs** `pip install 'fisherdyn[tasks,sweep]'`, no download, no GPU. **Takes** under two minutes on one core.
#
# tr(F) of a layer is the mean squared norm of the gradient, in that layer's weights, of log p(y|x), over inputs x and over
# labels y *that the model itself would give*. It says how strongly the model's answers hang on that layer, and it needs no
# label of yours.

# %%
import os
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import xarray as xr

import fisherdyn
from fisherdyn import plots, tasks

QUICK = "FISHERDYN_QUICK" in os.environ  # tests run this on small inputs
STEPS, EVERY, EXAMPLES = (8, 4, 32) if QUICK else (128, 8, 256)

torch.set_num_threads(1)
plt.rcParams.update(
    plots.STYLE | {"figure.figsize": (5.2, 2.6), "figure.dpi": 110, "figure.constrained_layout.use": True}
)
began = time.perf_counter()

# %% [markdown]
# ## The model
#
# An encoder of 12 layers that was pretrained on ten synthetic languages, with a language adapter and a task adapter in every
# layer. Only the task adapters and the classifier are trained, on three-way inference in the source language, "so".

# %%
task = tasks.load("world", train_examples=2000, probe_examples=EXAMPLES)
model = task.build_model(seed=0)
count = sum(p.numel() for p in model.parameters())
print(f"{count:,} weights, {sum(p.numel() for p in model.parameters() if p.requires_grad):,} of them trained")

# %% [markdown]
# ## Probe it once
#
# One line. The layers (here: task adapters, by block), the likelihood and the device are found. The model is left exactly as
# it was.

# %%
probe_loader = task.probe_loader()
ds = fisherdyn.probe(model, probe_loader, progress=False)
ds

# %% [markdown]
# Every number has its standard error over examples:

# %%
table = ds[["fisher_trace", "fisher_trace_se", "num_params"]].to_dataframe()
table["relative error"] = table["fisher_trace_se"] / table["fisher_trace"]
table

# %% [markdown]
# ## Other inputs: languages that it has never been trained on
#
# A dict of loaders adds a dimension. No labels are needed, so any text will do: here the nearest language, one in between
# and the most distant one. (The source's language adapter stays in: this asks what the *inputs* do, not zero-shot transfer.)

# %%
PROBE = 3  # the split that measurements are made on
near, *between, far = sorted(task.distances, key=task.distances.get)
languages = ["so", near, between[len(between) // 2], far]


def inputs(code):
    split = {name: x for name, x in task.split(PROBE, code).items() if name != "labels"}
    return [dict(zip(split, part, strict=True)) for part in zip(*(x.split(64) for x in split.values()), strict=True)]


before = fisherdyn.probe(model, {code: inputs(code) for code in languages}, progress=False)
before.fisher.plot()
plt.title("before training")
plt.show()

# %% [markdown]
# ## Record a training run
#
# The recorder hangs on the optimizer's hooks: the loop stays as it is. Here it records every few updates into a folder that
# grows with it, and adds two things that cost next to nothing: the loss, and, from training's own backward pass, the trace
# of the *empirical* Fisher (the data's labels instead of the model's).


# %%
def train(record_to=None):
    model = task.build_model(seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    recorder = None
    if record_to is not None:
        recorder = fisherdyn.Recorder(
            model,
            probe_loader,
            every=EVERY,
            num_batches=2,
            empirical=True,
            path=record_to,
            attrs={"lr": 2e-3, "seed": 0},
        ).attach(optimizer)
    step = 0
    loader = task.train_loader(seed=0)
    while step < STEPS:
        for batch in loader:
            if step == STEPS:
                break
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            if recorder is not None:
                recorder.log(train_loss=loss)
            step += 1
    if recorder is not None:
        recorder.close()
    return model, recorder


folder = Path(tempfile.mkdtemp())
trained, recorder = train(folder / "run.nc")
recorder.dataset

# %% [markdown]
# The same record is on disk, and opens without fisherdyn. Had the process been killed, all but the record being written
# would be there, and `Recorder(..., resume=path)` would go on from it.

# %%
with xr.open_dataset(folder / "run.nc") as opened:
    run = opened.load()
print("the file is the record:", run.identical(recorder.dataset))

# %% [markdown]
# And it was no other run for being watched: without the recorder the weights come out the same, bit for bit.

# %%
unwatched, _ = train()
weights = zip(trained.state_dict().values(), unwatched.state_dict().values(), strict=True)
print("the same weights, bit for bit:", all(torch.equal(a, b) for a, b in weights))

# %% [markdown]
# ## Look at it

# %%
run.fisher.plot()
plt.title("tr(F) of the task adapters, by block")
plt.show()

# %%
curve = run.fisher.learning_curve()
peak, width = run.fisher.peak(), run.fisher.width()
figure, (left, right) = plt.subplots(1, 2)
curve.plot(ax=left)
left.axvline(float(peak["peak_step"]), color="0.6", linestyle=":")
left.set_title("per open layer, smoothed")
run["train_loss"].plot(ax=right)
right.set_title("training loss")
plt.show()
print(
    f"peak {float(peak['peak']):.3g} nat at step {int(peak['peak_step'])}; above half of it for "
    f"{'at least ' if int(width['censored']) else ''}{float(width['width']):.0f} steps"
)

# %% [markdown]
# The empirical Fisher is not the Fisher. How far apart the two are on this run, layer by layer (their ratio, first and last
# record that has both):

# %%
ratio = (run["empirical_trace"] / run["fisher_trace"]).dropna("step")
ratio.isel(step=[0, -1]).T.to_pandas().round(2)

# %% [markdown]
# What it did to the languages:

# %%
after = fisherdyn.probe(trained, {code: inputs(code) for code in languages}, progress=False)
after.fisher.plot()
plt.title("after training")
plt.show()
change = (after["fisher_trace"].sum("layer") / before["fisher_trace"].sum("layer")).to_series()
print("tr(F) of all task adapters, after over before:", ", ".join(f"{code} {x:.3g}" for code, x in change.items()))

# %% [markdown]
# ## With transformers' Trainer
#
# The same, as a callback. (`fisherdyn.integrations.lightning` has one for Lightning.)

# %%
from transformers import Trainer, TrainingArguments

from fisherdyn.integrations.transformers import FisherCallback

split = task.split(0)
rows = [{name: x[i] for name, x in split.items()} for i in range(len(split["labels"]))]
callback = FisherCallback(probe_loader, every=5, num_batches=1)
arguments = TrainingArguments(
    str(folder / "trainer"), max_steps=STEPS // 8 or 1, per_device_train_batch_size=32, learning_rate=2e-3, use_cpu=True,
    report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
)  # fmt: skip
Trainer(task.build_model(seed=1), arguments, train_dataset=rows, callbacks=[callback]).train()
callback.dataset[["train_loss", "total_gradient_norm"]].to_dataframe().round(3)

# %% [markdown]
# ## What these numbers support, and what they do not
#
# - Supported, for this one run: tr(F) of the task adapters grows by orders of magnitude in the first hundred updates, on the
#   source and on languages that were never trained on alike. Each reading has its own standard error, a few per cent before
#   training and more after it: a confident model has few inputs that hold most of its trace.
# - Not supported: where tr(F) peaks and how wide the peak is. The curve has not come down when the run ends, so the width
#   above is a lower bound.
# - Not supported: that one language holds more than another, or that any of this predicts transfer. That takes several
#   seeds and accuracies: the notebooks on schedules have them.
# - The empirical Fisher is near the Fisher in some layers and well off in others; it is measured on one training batch a
#   record, so much of its scatter is noise. It is no substitute for the other.

# %%
print(f"{time.perf_counter() - began:.0f} seconds")
