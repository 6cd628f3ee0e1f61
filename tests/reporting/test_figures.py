"""Drawn figures have the labels, orientation and error bars of their description."""

import math
import os

import pytest
import torch
from support.figures import record_figures

import msrnn
from msrnn.reporting.figures import check_figure_file, check_figure_folder, draw, draw_attention, draw_retention
from msrnn.reporting.line_styles import COLOURS
from msrnn.reporting.plots import STRIP
from msrnn.reporting.report import Curves, Dots, HeatMaps, SideBySide


@pytest.fixture
def figures(monkeypatch):
    return record_figures(monkeypatch)


def test_curves_have_labels_points_and_error_bars(figures, tmp_path):
    lines = {"a": [(64.0, 10.0, 1.5), (128.0, 8.0, math.nan)], "b": [(64.0, 9.0, 0.5), (128.0, 7.0, 0.25)]}
    plot = Curves("title", "tokens", "perplexity", lines, {"full": 6.0}, log_y=True, vertical_lines={"training": 100.0})
    draw(plot, tmp_path / "curves.png")
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), figures[0].get_suptitle()) == ("tokens", "perplexity", "title")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["full", "training", "a", "b"]
    for container, points in zip(axes.containers, lines.values(), strict=True):
        line, _, (bars,) = container.lines
        assert list(line.get_ydata()) == [y for _, y, _ in points]
        assert list(line.get_xdata()) == pytest.approx([x for x, _, _ in points], rel=0.03)
        heights = [(segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments()]
        assert heights == pytest.approx([0 if error != error else error for _, _, error in points])
    assert list(axes.get_xticks()) == [64, 128]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128"]
    figures[0].canvas.draw()
    assert all(label.get_text().isdecimal() for label in axes.get_yticklabels())  # 8, not a power of 2
    assert [list(line.get_ydata()) for line in axes.lines if line.get_label() == "full"] == [[6.0, 6.0]]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_label() == "training"] == [[100.0, 100.0]]


def test_labels_of_nearly_equal_points_do_not_overlap(figures, tmp_path):
    lines = {"a": [(1.52, 2.0, 0.0), (3.04, 1.0, 0.0)], "b": [(1.54, 2.0, 0.0), (3.09, 1.0, 0.0)]}
    draw(Curves("", "MB", "nats", lines), tmp_path / "curves.png")
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == ["1.52", "3.04"]


def test_points_of_one_size_are_close_together_in_the_middle(figures, tmp_path):
    draw(Curves("", "size", "nats", {name: [(64.0, 1.0, 0.1)] for name in "abc"}), tmp_path / "curves.png")
    axes = figures[0].axes[0]
    xs = [container.lines[0].get_xdata()[0] for container in axes.containers]
    places = axes.transAxes.inverted().transform(axes.transData.transform([(x, 1.0) for x in xs]))[:, 0]
    assert list(places) == pytest.approx([0.49, 0.5, 0.51], abs=1e-6)


def test_points_are_connected_in_the_order_of_the_axis(figures, tmp_path):
    draw(Curves("", "size", "nats", {"a": [(64.0, 2.0, 0.0), (32.0, 3.0, 0.0), (128.0, 1.0, 0.0)]}), tmp_path / "curves.png")
    assert list(figures[0].axes[0].lines[0].get_ydata()) == [3, 2, 1]


def test_axes_are_linear_on_request(figures, tmp_path):
    draw(Curves("", "step", "loss", {"a": [(1.0, 2.0, 0.0), (2.0, 1.0, 0.0)]}, log_x=False), tmp_path / "linear.png")
    assert (figures[0].axes[0].get_xscale(), figures[0].axes[0].get_yscale()) == ("linear", "linear")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((1.3, 0.012), ["0.02", "0.05", "0.1", "0.2", "0.5", "1"]),
        ((140.0, 33.0), ["50", "70", "100"]),
        ((5e-4, 6e-4), ["0.0005", "0.0006"]),
        ((40.0, 44.0), ["40", "41", "42", "43", "44"]),
    ],
)
def test_a_logarithmic_axis_has_short_numbers(figures, values, labels, tmp_path):
    points = [(2.0**i, y, 0.0) for i, y in enumerate(values)]
    draw(Curves("", "size", "nats", {"a": points}, log_y=True), tmp_path / "log.png")
    axes = figures[0].axes[0]
    low, high = axes.get_ylim()
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert set(labels) <= set(shown)
    assert all(low <= float(text) <= high and len(text) <= 8 for text in shown)
    assert not axes.yaxis.get_minorticklocs().size


def test_steps_hold_until_the_next_point(figures, tmp_path):
    lines = {"tova:8": [(1.0, 1.0, math.nan), (3.0, 0.5, math.nan), (9.0, 0.25, math.nan)]}
    draw(Curves("", "steps", "share", lines, steps=True), tmp_path / "steps.png")
    axes = figures[0].axes[0]
    assert axes.lines[0].get_drawstyle() == "steps-post"
    assert (list(axes.lines[0].get_xdata()), list(axes.lines[0].get_ydata())) == ([1, 3, 9], [1, 0.5, 0.25])
    assert list(axes.get_xticks()) == [1, 2, 4, 8]
    assert not axes.containers  # no error bars


def test_dots_have_one_line_per_name_and_one_colour_per_operator(figures, tmp_path):
    series = {"tova:8": {"a": (1.0, 0.25), "b": (2.0, math.nan)}, "full": {"a": (3.0, 0.5)}}
    draw(Dots("title", "bits", series), tmp_path / "dots.png")
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), figures[0].get_suptitle()) == ("bits", "title")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["full", "tova:8"]
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        widths = [(segment[1][0] - segment[0][0]) / 2 for segment in bars.get_segments()]
        found[container.get_label()] = (list(line.get_xdata()), [round(y) for y in line.get_ydata()], widths, line.get_color())
    assert found == {"full": ([3], [0], [0.5], COLOURS["full"]), "tova:8": ([1, 2], [0, 1], [0.25, 0], COLOURS["tova"])}


def test_heat_maps_have_labels_ticks_and_values(figures, tmp_path):
    values = torch.tensor([[0.25, 0.75], [0.0, 1.0], [0.5, 0.5]])
    plot = HeatMaps("keys", "depth", "tokens", {"tova": values}, "share", ticks=(["0", "1"], ["64", "128", "256"]))
    draw(plot, tmp_path / "maps.png")
    axes, colour_bar = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("depth", "tokens", "tova")
    assert colour_bar.get_ylabel() == "share"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["64", "128", "256"]
    assert torch.equal(torch.tensor(axes.images[0].get_array().data), values)
    cells = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert cells[1, 0] == ("0.75", "white")
    assert cells[0, 0] == ("0.25", "black")
    assert len(cells) == 6


def test_colours_range_from_light_at_zero_to_dark_at_the_maximum(figures, tmp_path):
    draw(HeatMaps("", "position", "step", {"a": torch.full((2, 2), 3.0)}, "count", maximum=8.0), tmp_path / "maps.png")
    image = figures[0].axes[0].images[0]
    assert image.get_clim() == (0, 8)
    light, dark = (sum(image.cmap(image.norm(value))[:3]) for value in (0.0, 8.0))
    assert light > 2.7 > 1.0 > dark


def test_extent_is_the_range_of_both_axes(figures, tmp_path):
    draw(HeatMaps("", "position", "step", {"a": torch.eye(4)}, "share", extent=100), tmp_path / "maps.png")
    assert list(figures[0].axes[0].images[0].get_extent()) == [0, 100, 100, 0]  # row 0 is the first step, at the top


def test_panels_of_different_lengths_have_the_same_axes(figures, tmp_path):
    draw_retention({"full": torch.ones(9, 9).tril(), "short": torch.ones(6, 6).tril()}, tmp_path / "maps.png", prompt=4)
    for axes in figures[0].axes[:2]:
        assert axes.get_xlim() == (pytest.approx(-0.5 - 1.5 * STRIP * 9), 8.5)  # with the strip of the first token
        assert axes.get_ylim() == (8.5, -0.5)
    light, outside = figures[0].axes[1].images[0].cmap(0.0), figures[0].axes[1].get_facecolor()
    assert sum(outside[:3]) < sum(light[:3]) - 0.05  # what comes after the end of the text differs from an evicted position


def test_the_first_token_is_drawn_once_more_as_a_strip(figures, tmp_path):
    values = torch.tensor([[0.75, 0.0, 0.0], [0.25, 1.0, 0.0], [0.5, 0.0, 1.0]])
    plot = HeatMaps("", "position", "step", {"a": torch.cat((values[:, :1], values), 1)}, "share", extent=300, first_token=True)
    draw(plot, tmp_path / "maps.png")
    axes = figures[0].axes[0]
    whole, strip = axes.images
    assert torch.equal(torch.tensor(whole.get_array().data), values)
    assert torch.equal(torch.tensor(strip.get_array().data), values[:, :1])
    left, right, bottom, top = strip.get_extent()
    assert (bottom, top) == (300, 0)
    assert right < 0
    assert right - left == pytest.approx(300 * STRIP)
    assert axes.get_xlim() == (pytest.approx(left), 300)
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["first", "50"]


def test_the_line_below_the_prompt_is_in_the_units_of_the_extent(figures, tmp_path):
    draw(HeatMaps("", "position", "step", {"a": torch.eye(4)}, "share", extent=100, prompt=60), tmp_path / "maps.png")
    assert list(figures[0].axes[0].lines[0].get_ydata()) == [60, 60]


def test_maps_and_curves_side_by_side(figures, tmp_path):
    maps = HeatMaps("maps", "position", "step", {"a": torch.eye(4), "b": torch.ones(4, 4)}, "share")
    curves = Curves("curves", "size", "nats", {"tova": [(4.0, 1.0, 0.5)]})
    draw(SideBySide("whole", maps, curves), tmp_path / "both.png")
    assert figures[0].get_suptitle() == "whole"
    left, right = figures[0].subfigs
    assert (left.get_suptitle(), right.get_suptitle()) == ("maps", "curves")
    assert [axes.get_title() for axes in left.axes] == ["a", "b", ""]  # the last one is the colour bar
    assert [axes.get_ylabel() for axes in right.axes] == ["nats"]


def test_panels_of_operators_are_in_the_order_of_legends(figures, tmp_path):
    names = ["tova:8", "mine:8", "full", "window:8"]
    draw(HeatMaps("", "position", "step", {name: torch.eye(3) for name in names}, "share"), tmp_path / "maps.png")
    assert [axes.get_title() for axes in figures[0].axes[:-1]] == ["full", "window:8", "tova:8", "mine:8"]


def test_outer_labels_of_many_panels(figures, tmp_path):
    panels = {f"layer {i}": torch.eye(3) for i in range(14)}
    draw(HeatMaps("", "position", "step", panels, "share"), tmp_path / "many.png")
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figures[0].axes[:-1]]
    assert [i for i, (_, y) in enumerate(labels) if y] == [0, 6, 12]
    assert [i for i, (x, _) in enumerate(labels) if x] == [*range(8, 14)]


def test_retention_has_steps_down_and_positions_across(figures, tmp_path):
    retained = torch.ones(6, 6).tril()
    draw_retention({"full": retained}, tmp_path / "retention.png", prompt=4, title="tiny")
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("position", "step", "full")
    assert torch.equal(torch.tensor(axes.images[0].get_array().data), retained)
    assert list(axes.lines[0].get_ydata()) == [3.5, 3.5]  # below the last row of the prompt
    assert [text.get_text() for text in axes.texts] == ["prompt"]


@pytest.mark.parametrize("prompt", [0, 6])
def test_a_text_without_a_continuation_has_no_line(figures, prompt, tmp_path):
    draw_retention({"full": torch.ones(6, 6).tril()}, tmp_path / "retention.png", prompt=prompt)
    assert not figures[0].axes[0].lines
    assert not figures[0].axes[0].texts


def test_few_panels_have_four_columns(figures, tmp_path):
    draw(HeatMaps("", "position", "step", {f"layer {i}": torch.eye(3) for i in range(5)}, "share"), tmp_path / "few.png")
    places = [axes.get_subplotspec() for axes in figures[0].axes[:-1]]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


def test_attention_has_queries_down_and_rows_across(figures, tmp_path):
    draw_attention({"mask": torch.ones(3, 5, dtype=torch.bool)}, tmp_path / "attention.png")
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("row", "query")
    assert axes.images[0].get_array().shape == (3, 5)
    assert not axes.lines


def test_weights_with_a_graph_are_drawn(figures, tmp_path):
    weights = torch.rand(4, 4, requires_grad=True).softmax(-1)
    draw_attention({"head 0": weights}, tmp_path / "attention.png")
    assert torch.equal(torch.tensor(figures[0].axes[0].images[0].get_array().data), weights.detach())


def test_unusable_output_paths_are_refused(tmp_path):
    check_figure_file(tmp_path / "figure.svg")
    with pytest.raises(msrnn.Error, match="expected a file in an existing folder"):
        check_figure_file(tmp_path / "new" / "figure.svg")
    check_figure_folder(tmp_path / "new")
    assert os.listdir(tmp_path) == []
    with pytest.raises(msrnn.Error, match=r"cannot draw .*figure\.xyz; expected a name that ends in one of"):
        check_figure_file(tmp_path / "figure.xyz")
    (tmp_path / "file").write_text("")
    with pytest.raises(msrnn.Error, match="cannot write"):
        check_figure_file(tmp_path / "file" / "figure.png")
    with pytest.raises(msrnn.Error, match="cannot write"):
        check_figure_folder(tmp_path / "file")
