"""Each operator has one colour in all figures, and the legend has one order."""

from msrnn.reporting.line_styles import COLOURS, line_styles


def test_an_operator_has_one_colour_everywhere():
    styles = line_styles(["tova:64", "sinks:SIZE:4", "all-layers:tova:128", "h2o", "sinks:SIZE:1"])
    assert styles["tova:64"].colour == styles["all-layers:tova:128"].colour == line_styles(["tova"])["tova"].colour
    assert styles["tova:64"].dashes != styles["all-layers:tova:128"].dashes
    assert styles["sinks:SIZE:4"].colour == styles["sinks:SIZE:1"].colour
    assert len({(style.colour, style.dashes) for style in styles.values()}) == 5
    assert len({style.marker for style in styles.values()}) == 5


def test_the_legend_has_the_order_of_the_colours_and_then_of_the_names():
    assert list(line_styles(["mine", "tova", "window", "knorm", "full"])) == ["full", "window", "tova", "mine", "knorm"]
    others = line_styles(["mine", "knorm"])
    assert others["mine"].colour != others["knorm"].colour
    assert not {style.colour for style in others.values()} & set(COLOURS.values())
