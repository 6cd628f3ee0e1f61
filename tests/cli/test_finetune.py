"""``msrnn finetune`` and the option ``--lora``, on a tiny model with a tokenizer."""

import os

import pytest
import torch
from matplotlib.image import imread
from support.adapters import adapt
from support.tiny_tokenizer import chat_cell, tiny_tokenizer
from support.training import words

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.train import FinetuneConfig, finetune

TEXT = "".join(x for x in words() if x.isascii())
SETTINGS = ["--steps", "4", "--chunk-length", "10", "--batch-size", "2", "--chunks-per-state", "2", "--eval-every", "2"]


@pytest.fixture
def model(tmp_path):
    chat_cell(seed=4).save(tmp_path / "model")
    (tmp_path / "words.txt").write_text(TEXT)
    return tmp_path / "model"


def command(model, *more):
    return [
        "finetune",
        str(model),
        "--text",
        str(model.parent / "words.txt"),
        "-o",
        str(model.parent / "out"),
        *SETTINGS,
        *more,
    ]


def test_the_adapter_is_that_of_the_function_and_other_commands_read_it(model, tmp_path, capsys):
    more = ["--lora-rank", "3", "--lora-alpha", "9", "--target-modules", "q_proj", "down", "--lr", "0.05", "--seed", "2"]
    assert main(command(model, "--reduction", "tova:6", *more)) == 0
    out = capsys.readouterr().out
    fields = {"steps": 4, "chunk_length": 10, "batch_size": 2, "chunks_per_state": 2, "eval_every": 2, "lr": 0.05, "seed": 2}
    adapter = {"r": 3, "lora_alpha": 9.0, "target_modules": ("q_proj", "down")}
    config, cell = FinetuneConfig(reduction="tova:6", **fields, **adapter), msrnn.load(model)
    done = finetune(
        cell, TEXT, lambda text: tiny_tokenizer().encode(text).ids, config, tmp_path / "other", base_model=str(model)
    )
    for name in ("adapter_config.json", "adapter_model.safetensors", "training.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert imread(tmp_path / "out" / "loss.png").std() > 0.05
    assert f"{done.validation[0]:.4f} nats/token before, {done.validation[4]:.4f} after" in out
    assert "under tova:6" in out
    assert "in 4 adapters, 4 steps" in out
    generate = [
        "generate",
        str(model),
        "--prompt",
        "the sea",
        "--max-new-tokens",
        "12",
        "--ignore-eos",
        "--reduction",
        "tova:6",
    ]
    ids = torch.tensor([tiny_tokenizer().encode("the sea").ids])
    texts = []
    for more, reader in (([], msrnn.load(model)), (["--lora", str(tmp_path / "out")], cell.eval())):
        assert main([*generate, "--reduction", "tova:6", *more]) == 0
        texts.append(capsys.readouterr().out)
        tokens = msrnn.generate(reader, ids, reader.initial_state(1, "tova:6"), max_new_tokens=12).tokens
        assert texts[-1] == tiny_tokenizer().decode(tokens[0].tolist()) + "\n"
    assert texts[0] != texts[1]


def test_convert_merges_the_adapter(model, tmp_path, capsys):
    cell = adapt(msrnn.load(model), target_modules="all-linear")
    msrnn.lora.save_adapter(cell, tmp_path / "adapter")
    expected = msrnn.lora.merge(cell)
    for name, more in {"own": [], "hf": ["--to", "hf"], "packed": ["--weights", "int8"]}.items():
        assert main(["convert", str(model), str(tmp_path / name), "--lora", str(tmp_path / "adapter"), *more]) == 0
        loaded, files = converters.load(tmp_path / name), {path.name for path in (tmp_path / name).iterdir()}
        assert "tokenizer.json" in files
        if name == "packed":
            assert (loaded.layers[0].q.matrix.dequantise() - expected.layers[0].q.weight).abs().max() < 0.02
        else:
            assert loaded.layers[1].down.weight.equal(expected.layers[1].down.weight)
    capsys.readouterr()
    assert main(["convert", str(model), str(tmp_path / "own"), "--lora", str(tmp_path / "adapter")]) == 1
    assert "exists already" in capsys.readouterr().err


def test_evaluation_reads_the_adapter(model, tmp_path, capsys):
    msrnn.lora.save_adapter(adapt(msrnn.load(model)), tmp_path / "adapter")
    evaluate = [
        "eval",
        "lm",
        str(model),
        "--text",
        str(tmp_path / "words.txt"),
        "--chunk",
        "40",
        "--chunks",
        "1",
        "--operators",
    ]
    found = []
    for more in ([], ["--lora", str(tmp_path / "adapter")]):
        assert main([*evaluate, "full", *more]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] != found[1]


def test_ctrl_c_names_the_folder_and_the_command_resumes(model, tmp_path, capsys, monkeypatch):
    replace_file, left = os.replace, [3]

    def stop(source, target):
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", stop)
    assert main(command(model)) == 130
    assert f"the same command resumes from the last checkpoint in {tmp_path / 'out'}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command(model)) == 0
    assert "under the operator of the model" in capsys.readouterr().out
    assert (tmp_path / "out" / "state-4.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--chunk-length", "9999"], "the text has"),
        (["--target-modules", "q", "x"], "target_modules has 'x'; expected linear maps of this cell"),
        (["--lr", "3"], "lr is 3.0; expected a number above 0 and at most 1"),
        (["--lora-alpha", "-1"], "lora_alpha is -1.0; expected a number above 0"),
        (["--text", "nowhere.txt"], "cannot read nowhere.txt"),
        (["-o", "words.txt"], "words.txt"),
    ],
)
def test_refusals_leave_nothing(more, message, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir(tmp_path))
    assert main(command(model, *more)) == 1
    err = capsys.readouterr().err
    assert err.startswith("msrnn: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(os.listdir(tmp_path)) == before


def test_lora_is_refused_where_it_has_no_meaning_and_without_an_adapter(model, tmp_path, capsys):
    assert main(["generate", str(model), "--prompt", "the", "--lora", str(tmp_path)]) == 1
    assert "has no adapter_config.json; expected the folder of a LoRA adapter" in capsys.readouterr().err
    for line, message in {
        ("bench", str(model)): "unrecognized arguments: --lora",
        tuple(command(model)): "--lora could match --lora-rank, --lora-alpha",
    }.items():
        with pytest.raises(SystemExit):
            main([*line, "--lora", "x"])
        assert message in capsys.readouterr().err
