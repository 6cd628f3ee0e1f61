"""Progress bars are shown only if they are enabled."""

from msrnn.reporting.progress import progress_bar


def test_a_disabled_bar_writes_nothing(capsys):
    with progress_bar(3, "cell", enabled=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_no_bar_without_a_terminal(capsys):
    with progress_bar(3, "cell", initial=1, label="reading") as bar:
        bar.update()
        assert bar.disable
    assert capsys.readouterr().err == ""
