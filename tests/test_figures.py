"""python -m paper_figures and fisherdyn.plots, on a made-up sweep: what is drawn, from what, and how it looks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_sweep import sweep_record

from fisherdyn import analysis, plots, policies, record
from paper_figures import __main__ as command
from paper_figures import captions, drawings, figures, published, stores, tables


def _sweep(seeds=2):
    """Standard training and ten orders, opened one every 5 steps."""
    ds = record.describe(sweep_record(0.05, seeds=seeds))
    rng = np.random.default_rng(0)
    selected = np.zeros((ds.sizes["run"], 12), dtype=int)
    for row, name in zip(selected, ds["schedule"].values, strict=True):
        if name != "standard":
            order = range(10, -1, -1) if name == "top-down" else rng.permutation(11)
            row[list(order)] = 5 * np.arange(1, 12)
    return (
        with_policies(ds)
        .assign(
            selected=(("run", "layer"), selected),
            trainable=(("run", "step", "layer"), (ds["step"].values[:, None] >= selected[:, None]).astype(np.int8)),
            fisher_trace_se=0.1 * ds["fisher_trace"],
        )
        .assign_attrs(task="world", study="permutations")
    )


def with_policies(ds):
    """Schedules that are named by a policy's id have it; top-down too; all others are orders. As a sweep labels them."""
    names = ds["schedule"].values.tolist()
    ids = [name.replace("top-down", "top_down") for name in names]
    ids = [name if name in policies.NAMED else "permutation" for name in ids]
    labels = [
        policies.NAMED[policy].label_of(name) if policy in policies.NAMED else name
        for name, policy in zip(names, ids, strict=True)
    ]
    return ds.assign_coords(policy=("run", ids), label=("run", labels))


def _compared():
    """The paper's methods; FUN opens layers a little out of order."""
    ds = _sweep(3)
    methods = ["standard", "top-down", "fun", "random", "bottom_up", "linear_probing"]
    names = dict(zip(stores.schedules(ds), methods, strict=False))
    ds = ds.isel(run=np.flatnonzero(np.isin(ds["schedule"].values, list(names))))
    return with_policies(ds.assign_coords(schedule=("run", [names[name] for name in ds["schedule"].values])))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "mine.nc"
    _sweep().to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def drawn():
    """Every figure once, laid out."""
    ds, compared = _sweep(), _compared()
    made = {name: function(ds) for name, function in command.FIGURES.items()}
    made |= {name: function() for name, function in command.DRAWINGS.items()}
    made |= {"fig2-compared": figures.fig2(compared), "fig5-compared": figures.fig5(compared)}
    for figure in made.values():
        FigureCanvasAgg(figure).draw()
    return made


DRAWN = [*{**command.FIGURES, **command.DRAWINGS}, "fig2-compared", "fig5-compared"]


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_clipped(drawn, name):
    """What is drawn, ticks and labels included, fits into the picture."""
    figure = drawn[name]
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    assert box.x0 > -0.01
    assert box.y0 > -0.01
    assert box.x1 < figure.get_figwidth() + 0.01
    assert box.y1 < figure.get_figheight() + 0.01


def test_clipping_would_be_seen():
    figure = Figure(figsize=(2, 1))
    figure.text(0.9, 0.5, "a text that runs out of the picture")
    FigureCanvasAgg(figure).draw()
    with pytest.raises(AssertionError):
        test_nothing_is_clipped({"x": figure}, "x")


@pytest.mark.parametrize("name", DRAWN)
def test_prints_at_the_width_of_a_column_or_a_page(drawn, name):
    assert drawn[name].get_figwidth() in (plots.ACL_COLUMN, plots.ACL_PAGE)
    sizes = [text.get_fontsize() for text in drawn[name].findobj(Text) if text.get_text().strip()]
    assert min(sizes) >= 6


@pytest.mark.parametrize("name", DRAWN)
def test_legends_cover_no_point_and_lines_differ_in_grey(drawn, name):
    renderer = drawn[name].canvas.get_renderer()
    for ax in drawn[name].findobj(plt.Axes):
        lines = [line for line in ax.get_lines() if not line.get_label().startswith("_") and len(line.get_xdata()) > 1]
        looks = {(str(line._dash_pattern), line.get_marker(), line.get_linewidth()) for line in lines}
        assert len(looks) == len(lines), looks
        legend = ax.get_legend()
        if legend is None:
            continue
        box = legend.get_window_extent(renderer)
        for line in lines:
            points = ax.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
            assert not any(box.contains(*point) for point in points[np.isfinite(points).all(axis=1)]), line.get_label()


def test_axes_say_what_they_show(drawn):
    for name, units in {"fig3": "nat", "fig2": "points", "transfer": "%", "fig4": "%", "forest": "points"}.items():
        labels = [f"{ax.get_xlabel()} {ax.get_ylabel()}" for ax in drawn[name].findobj(plt.Axes)]
        assert any(units in label for label in labels), (name, labels)


def test_the_same_data_is_the_same_file(sweep, tmp_path):
    names = ["fig1", "fig3", "table2"]
    for folder in ("a", "b"):
        assert (
            command.main([*names, "--runs", str(sweep), "--format", "png,pdf,svg", "--out", str(tmp_path / folder)])
            == 0
        )
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    expected = [f"{stem}.{ending}" for stem in ("fig1", "fig3-mine") for ending in ("png", "pdf", "svg")]
    expected += [f"{stem}.{ending}" for stem in ("table2", "table2-mine") for ending in ("md", "tex")]
    assert files == sorted([*expected, captions.FILE])
    for name in set(files) - {captions.FILE}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    pdf = (tmp_path / "a" / "fig3-mine.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf


def test_captions_name_data_seeds_and_command(sweep, tmp_path):
    assert command.main(["forest", "--runs", str(sweep), "--format", "png", "--out", str(tmp_path)]) == 0
    assert command.main(["fig6", "--format", "png", "--out", str(tmp_path)]) == 0
    said = (tmp_path / captions.FILE).read_text()
    assert re.findall(r"^## (\S+)", said, re.M) == ["fig6", "forest-mine"]
    assert "Data: mine.nc, 22 runs, seeds 0 to 1, steps 100, interval 5, lr 0.002" in said
    assert f"    python -m paper_figures forest --runs {sweep} --format png --out {tmp_path}" in said
    assert set(captions.SHOWN) == {*command.DRAWINGS, *command.FIGURES, "table"}


def test_a_sweep_of_standard_training_alone(sweep, tmp_path, capsys):
    """What cannot be drawn from it is said in one line each, the rest is drawn."""
    with xr.open_dataset(sweep) as ds:
        ds.isel(run=ds["schedule"] == "standard").to_netcdf(tmp_path / "standard.nc")
    names = [*command.FIGURES, "fig1", "table11"]
    assert (
        command.main(
            [*names, "--runs", str(tmp_path / "standard.nc"), "--format", "png", "--out", str(tmp_path / "out")]
        )
        == 1
    )
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in said] == ["fig2", "fig3", "fig4", "fig5", "forest", "table11"]
    assert all(line.startswith("not drawn: ") and "standard.nc has" in line for line in said)
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn == {"fig1.png", "fig2.png", "transfer-standard.png", "table11.md", "table11.tex", captions.FILE}


def test_a_missing_table_costs_one_line(monkeypatch, tmp_path, capsys):
    shutil.copytree(published.PAPER, tmp_path / "paper")
    (tmp_path / "paper" / "table9.csv").unlink()
    monkeypatch.setattr(published, "PAPER", tmp_path / "paper")
    published.table.cache_clear()
    published.results.cache_clear()
    monkeypatch.setattr(command, "DATA", tmp_path / "nothing")
    assert command.main(["fig1", "fig2", "table7", "table9", "table10", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    published.table.cache_clear()
    published.results.cache_clear()
    assert [line for line in said.splitlines() if "table9" in line] == [
        f"not drawn: fig2, table9: table9.csv is not in {tmp_path / 'paper'}: it is part of the repository, restore it"
    ]
    drawn = {path.stem for path in (tmp_path / "out").iterdir()}
    assert drawn == {"fig1", "table7", "table10", "captions"}


def test_a_missing_sweep_costs_one_line(monkeypatch, sweep, tmp_path, capsys):
    there, *missing = command.REFERENCE
    shutil.copy(sweep, tmp_path / there)
    monkeypatch.setattr(command, "DATA", tmp_path)
    assert command.main(["transfer", "--format", "png", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [f"not drawn: {tmp_path / name}: there is no such file" for name in missing]
    assert (tmp_path / "out" / f"transfer-{there.removesuffix('.nc')}.png").exists()
    (tmp_path / there).unlink()
    assert command.main(["transfer", "--format", "png", "--out", str(tmp_path / "out")]) == 1
    assert "transfer: there is no sweep to draw it from" in capsys.readouterr().err


def test_a_sweeps_folder_is_read_while_it_grows(sweep, tmp_path):
    with xr.open_dataset(sweep) as ds:
        status = ("run", np.arange(ds.sizes["run"]) < 11)
        ds.load().assign(status=status).to_zarr(tmp_path / "runs.zarr", consolidated=False, zarr_format=2)
    assert stores.read(tmp_path).sizes["run"] == 11
    assert stores.read(tmp_path / "runs.zarr").sizes["run"] == 11
    assert stores.read(sweep).sizes["run"] == 22


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig9"], "unknown fig9: choose among fig1, fig2, fig3"),
        (["--format", "bmp"], "unknown format bmp"),
        (["--runs", "OTHER"], "not the record of a sweep: it has no fisher_trace"),
        (["--runs", "TEXT"], "not a record that can be read"),
        (["--runs", "NOWHERE"], "there is no such file"),
        (["--runs", "SWEEP", "--out", "TEXT"], "expected a folder, found a file"),
    ],
)
def test_wrong_arguments(arguments, message, sweep, tmp_path, capsys):
    places = {
        "OTHER": tmp_path / "other.nc",
        "TEXT": tmp_path / "text.nc",
        "SWEEP": sweep,
        "NOWHERE": tmp_path / "no.nc",
    }
    xr.Dataset({"x": 1}).to_netcdf(places["OTHER"])
    places["TEXT"].write_text("not a record")
    with pytest.raises(SystemExit) as stop:
        command.main([str(places.get(argument, argument)) for argument in arguments])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", tables.TITLES)
def test_tables_in_both_languages(number):
    table = tables.build(number)
    plain, latex = tables.markdown(table), tables.latex(table)
    assert all(len(row) == len(block.header) for block in table.blocks for row in block.rows)
    cells = [cell for block in table.blocks for row in block.rows for cell in row]
    assert all(cell in plain for cell in cells)
    assert latex.count("\\toprule") == len(table.blocks)
    assert latex.count("{") == latex.count("}")
    rows = [line for line in latex.splitlines() if line.endswith("\\\\")]
    lengths = [len(block.header) for block in table.blocks for _ in range(1 + len(block.rows))]
    assert [len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows] == lengths
    assert not re.search(r"(?<!\\)[%&_](?![^\n]*\\\\)", re.sub(r"^%.*", "", latex, flags=re.M))


def test_table_2_marks_the_best_and_has_our_rows():
    table = tables.build(2, _compared())
    plain = tables.markdown(table)
    assert "| XLM-R + GU | 80.37 / 66.77 | 55.16 / 35.49 | **63.47 ± 0.12 / 43.55 ± 0.11** |" in plain
    assert "| XLM-R + FUN | 80.92 / 66.70 | 53.17 / 37.73 | *63.10 ± 0.79 / 43.37 ± 0.51* |" in plain
    assert [row[0] for row in table.blocks[-1].rows] == [
        "standard",
        "random",
        "GU (top-down)",
        "LPFT",
        "FUN",
        "reverse",
    ]
    assert re.search(r"\| GU \(top-down\) \| [\d.]+ \| [\d.]+ \| \*?\*?[\d.]+ ± [\d.]+", plain)
    assert "\\textbf{63.47 $\\pm$ 0.12 / 43.55 $\\pm$ 0.11}" in tables.latex(table)
    with pytest.raises(ValueError, match="no two of top_down"):
        tables.build(11, _sweep())


def test_sweeps_of_the_papers_own_tasks_are_drawn_too():
    """Languages without a distance; F1 with exact matches; the best checkpoint's results."""
    ds = _compared().drop_vars("distance")
    ds = ds.assign(metric_at_best=ds["metric"].isel(eval_step=0))
    ds = ds.assign(exact_match_at_best=ds["metric_at_best"] / 2, exact_match=ds["metric"] / 2)
    for name in ("fig2", "fig5", "forest"):
        command.FIGURES[name](ds)
    block = tables.build(2, ds).blocks[-1]
    assert block.header[0] == "Ours: world (F1 / EM, %; ± 95 %, 3 seeds)"
    assert block.header[1] == "Source (F1)"
    expected = 100 * analysis.by_schedule(ds["metric_at_best"]).mean("target").sel(schedule="fun").mean("seed")
    f1, em = re.fullmatch(r"([\d.]+) ± [\d.]+ / ([\d.]+) ± [\d.]+", block.rows[4][3]).groups()
    assert [float(f1), float(em)] == pytest.approx([float(expected), float(expected) / 2], abs=0.051)
    with pytest.raises(ValueError, match="no distance of its languages"):
        figures.transfer(ds)


def test_small_sets_of_training_data_have_their_tables(tmp_path, capsys):
    """Tables 1 and 12; all else would take runs with 200 and 1,000 examples for the same."""
    small = _compared()
    ds = xr.concat([small, small.assign(metric=small["metric"] / 2)], "run")
    ds = ds.assign_coords(train_examples=("run", np.repeat([200, 1000], small.sizes["run"])))
    block = tables.build(12, ds).blocks[-1]
    assert block.header == ["Ours: world (accuracy, %; ± 95 %, 3 seeds)", "200", "1000"]
    assert [row[0] for row in block.rows] == ["standard", "GU (top-down)", "FUN"]
    assert all(float(row[1].split()[0]) == pytest.approx(2 * float(row[2].split()[0]), abs=0.15) for row in block.rows)
    with pytest.raises(ValueError, match="2 runs of 'standard' with seed 0"):
        analysis.transfer(ds).pipe(analysis.by_schedule)
    with pytest.raises(ValueError, match="one number of training examples"):
        tables.build(1, small)
    path = tmp_path / "low.nc"
    ds.to_netcdf(path)
    assert command.main(["table1", "fig2", "--runs", str(path), "--out", str(tmp_path / "out"), "--format", "png"]) == 1
    assert "low.nc has runs with 200, 1000 training examples, which table1 and table12" in capsys.readouterr().err
    assert (tmp_path / "out" / "table1-low.md").exists()


def test_our_rows_of_table_2_are_source_lowest_and_average_of_the_papers_methods():
    """F1 and exact match; the lowest target is the first method's; other schedules' missing seeds do not matter."""
    ds = _compared()
    ds = ds.assign(source_metric=0.5 + ds["source_metric"], exact_match=ds["metric"] / 4)
    gone = (ds["schedule"].values == "bottom_up") & (ds["seed"].values == 2)
    other = ds.isel(run=np.flatnonzero(gone)).assign_coords(
        schedule=("run", ["an order"]), policy=("run", ["permutation"])
    )
    ds = xr.concat([ds.isel(run=np.flatnonzero(~gone)), other], "run")
    block = tables.build(2, ds).blocks[-1]
    assert block.header[0].endswith("2 seeds)")  # that all the paper's methods have
    both = ds.isel(run=np.flatnonzero(ds["seed"].values < 2))
    results = 100 * analysis.results(both)
    of = {
        name: results.isel(run=np.flatnonzero(results["schedule"].values == name)) for name in ("standard", "bottom_up")
    }
    low = of["standard"]["target_result"].mean("run").idxmin("target").item()
    assert block.header[2] == f"Lowest ({low})"
    for row, name in ((block.rows[0], "standard"), (block.rows[-1], "bottom_up")):
        one = of[name]
        transfer = analysis.mean_interval(one["transfer"].values)
        lowest = float(one["target_result"].sel(target=low).mean())
        assert row[1] == f"{float(one['source'].mean()):.1f}"
        assert row[2] == f"{lowest:.1f} / {lowest / 4:.1f}"
        assert row[3].startswith(f"{transfer.estimate:.1f} ± {transfer.half:.1f} / {transfer.estimate / 4:.1f} ± ")
    with pytest.raises(ValueError, match="runs with 200, 1000 training examples, which table1 and table12 alone"):
        tables.build(2, ds.assign_coords(train_examples=("run", [200, 1000] * (ds.sizes["run"] // 2))))


def test_a_low_resource_sweep_that_is_not_finished_has_its_table():
    small = _compared()
    more = small.isel(run=np.flatnonzero((small["schedule"].values != "fun") & (small["seed"].values < 2)))
    ds = xr.concat([small, more], "run")
    ds = ds.assign_coords(train_examples=("run", [200] * small.sizes["run"] + [1000] * more.sizes["run"]))
    block = tables.build(12, ds).blocks[-1]
    assert block.header[0].endswith("2 to 3 seeds)")
    assert block.rows[-1][0] == "FUN"
    assert block.rows[-1][2] == "-"


def test_runs_that_failed_are_not_drawn(tmp_path):
    ds = _sweep().assign(status=("run", np.where(np.arange(22) == 3, -1, 1)))
    ds.to_netcdf(tmp_path / "failed.nc")
    assert stores.read(tmp_path / "failed.nc").sizes["run"] == 21


def test_figure_5_gives_the_distance_from_top_down(drawn):
    texts = [text.get_text() for text in drawn["fig5-compared"].findobj(Text)]
    assert "distance from top-down: FUN 0.11" in texts
    assert any(text.startswith("distance from top-down: FUN 0.") and "random" in text for text in texts)


def test_figure_shows_every_group():
    ds = _sweep()
    figure = plots.figure_4(ds)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(plots.transfer_groups(analysis.summarise(ds)))
    assert sum(int(n) for label in labels for n in re.findall(r"\((\d+)\)|(\d+) other", label) for n in n if n) >= 9
    left, right = figure.axes
    assert all(axes.get_xlabel() == "step" for axes in (left, right))


def test_traces_by_layer_as_lines_and_as_a_map():
    one = _sweep().isel(run=1)
    figure = Figure()
    lines, bars, mapped, late = figure.subplots(1, 4)
    assert plots.by_layer(lines, one) is lines
    assert len(lines.get_lines()) == 12
    np.testing.assert_allclose(lines.get_lines()[3].get_ydata(), one["fisher_trace"].isel(layer=3))
    assert plots.by_layer(bars, one.isel(step=3)) is bars
    assert plots.heat_map(mapped, one) is mapped
    shown = mapped.collections[0].get_array()
    np.testing.assert_allclose(shown, one["fisher_trace"].transpose("layer", "step"))
    assert len(mapped.get_lines()) == 11  # one mark for each layer that opens after the start
    assert plots.openings(late, one) is late
    assert len(late.patches) == 12
    with pytest.raises(ValueError, match=r"expected one run over \(step, layer\)"):
        plots.by_layer(lines, _sweep())


def test_learning_period_is_marked_where_it_is():
    steps = np.arange(0, 201, 4)
    curve = xr.DataArray(2 * np.exp(-((steps - 100.0) ** 2) / (2 * 20**2)), {"step": steps}, ["step"])
    ax = Figure().subplots()
    plots.learning_period(ax, curve)
    peak, bar, *ends = ax.get_lines()
    assert (peak.get_xdata()[0], peak.get_ydata()[0]) == (100, 2)
    np.testing.assert_allclose(np.ptp(bar.get_xdata()), 2 * np.sqrt(2 * np.log(2)) * 20, rtol=0.01)
    assert [line.get_marker() for line in ends] == ["|", "|"]
    ax = Figure().subplots()
    plots.learning_period(ax, curve.where(curve["step"] < 110, drop=True))
    assert [line.get_marker() for line in ax.get_lines()[2:]] == ["|", ">"]
    assert plots.learning_period(ax, np.nan * curve) is ax


def test_forest_is_sorted_and_fills_what_is_found():
    ds = _sweep(8)
    compared = analysis.compare(analysis.by_schedule(analysis.transfer(ds)))
    ax = Figure().subplots()
    plots.forest(ax, compared, plots.labels(ds))
    names = [text.get_text() for text in ax.get_yticklabels()]
    best = str(compared["schedule"].values[int(np.argmax(compared["difference"].values))])
    assert names[-1] == plots.labels(ds)[best]
    filled = sum(line.get_markerfacecolor() != "white" for line in ax.get_lines() if line.get_marker() == "o")
    assert filled == int((compared["p_adjusted"] < 0.05).sum())
    one = Figure().subplots()
    plots.forest(one, analysis.compare(analysis.by_schedule(analysis.transfer(_sweep(1)))))
    assert all(line.get_marker() in ("x", "None") for line in one.get_lines())


def test_drawing_needs_no_torch(tmp_path):
    code = (
        "import sys; from paper_figures.__main__ import main; "
        f"main(['fig1', 'table2', '--out', {str(tmp_path)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_drawings_are_of_the_papers_figures():
    texts = [text.get_text() for text in drawings.fig1().findobj(Text)]
    assert {"a) standard", "b) gradual unfreezing", "c) unfreezing by tr(F)"} <= set(texts)
    texts = [text.get_text() for text in drawings.fig6().findobj(Text)]
    assert {"task adapter", "language adapter", "down", "ReLU", "up"} <= set(texts)


def test_correlations_are_drawn_where_there_are_any():
    found = analysis.transfer_correlations(analysis.summarise(_sweep(4)), resamples=99)
    ax = Figure().subplots()
    assert plots.correlations(ax, found) is ax
    known = int(found["correlation"].sel(measure=["spearman", "mixed"]).notnull().sum())
    assert sum(line.get_linestyle() == "-" for line in ax.get_lines()) == known
    assert len(ax.texts) == 6 - known
    assert [text.get_text() for text in ax.get_yticklabels()] == ["peak", "width", "area"]


def test_a_policy_of_the_users_own_is_in_every_figure_and_table_of_methods():
    """Named by its label, drawn by itself, not among the fixed orders; nothing of the project knows it."""
    ds = _compared()
    own = ds["schedule"].values == "random"
    ds = ds.assign_coords(
        policy=("run", np.where(own, "two_at_a_time", ds["policy"])),
        label=("run", np.where(own, "two at a time", ds["label"])),
    )
    assert [row[0] for row in tables.build(2, ds).blocks[-1].rows][-1] == "two at a time"
    assert [row[0] for row in tables.build(11, ds).blocks[-1].rows] == ["GU (top-down)", "reverse", "two at a time"]
    for name in ("fig2", "fig5", "forest"):
        texts = [text.get_text() for text in command.FIGURES[name](ds).findobj(Text)]
        assert any("two at a time" in text for text in texts), name
    assert "distance from top-down: FUN" in str([text.get_text() for text in figures.fig5(ds).findobj(Text)])


def test_a_record_that_names_no_policies_says_so():
    with pytest.raises(ValueError, match="assign a coordinate policy over run"):
        figures.fig3(_sweep().drop_vars("policy"))


@pytest.mark.parametrize("path", sorted(command.DATA.glob("*.nc")), ids=lambda path: path.stem)
def test_the_committed_records_name_the_papers_policies(path):
    known = stores.policies(stores.read(path))
    assert (known["standard"], known["top-down"]) == ("standard", "top_down")
    assert {policy for name, policy in known.items() if name.startswith("figure-4/")} <= {"permutation"}
    assert set(known.values()) <= {*policies.NAMED, "permutation"}


def test_stores_and_policies_agree_on_ids():
    """`paper_figures` must not import torch, so that it repeats the ids that it compares."""
    assert set(stores.PAPERS) <= set(policies.NAMED)
