"""``msrnn info``."""

from msrnn.cli.main import main


def test_info_reads_the_config_only(hf_folder, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((hf_folder / "config.json").read_bytes())
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for fact in ("134.5 million", "9 query, 3 key/value", "49,152", "tied", "8,192", "46,800"):
        assert fact in out
