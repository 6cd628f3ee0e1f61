"""``msrnn info``."""

from msrnn.cli.main import main


def test_info_reads_the_config_only(hf_folder, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((hf_folder / "config.json").read_bytes())
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for fact in (
        "parameters    134.5 million",
        "layers        30 of width 576, MLP width 1536",
        "heads         9 query, 3 key/value, of dimension 64",
        "vocabulary    49,152, LM head tied to the embedding",
        "context length 8,192",
        "reduction     full (default of the family)",
        "eos token ids 2",
        "KV cache      23,760 bytes per token in 16 bits, 46,800 in float32",
    ):
        assert fact in out, out
