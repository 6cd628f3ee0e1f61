"""The harness gets the results of its own hf model from an unbounded cell, and those of the operator from a bounded one."""

import json
import sys
from dataclasses import replace

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from support.tiny_tokenizer import tiny_tokenizer
from support.transformers_reference import tiny_reference
from transformers import PreTrainedTokenizerFast

import converters
import msrnn
from msrnn.cli.lm_eval import register
from msrnn.cli.main import main
from msrnn.eval.harness import HarnessLM

TOKENIZER = tiny_tokenizer()
TASKS = {
    "choice": """output_type: multiple_choice
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "last_word": """output_type: loglikelihood
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "whole": """output_type: loglikelihood_rolling
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "written": """output_type: generate_until
generation_kwargs: {until: ["e", "\\n\\n"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}
WORDS = ["the", "sea", "was", "calm", "and", "in", "the", "morning", "the", "boat", "on", "it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    size = TOKENIZER.get_vocab_size()
    model = tiny_reference(vocab_size=size, bos_token_id=3, eos_token_id=2, dtype=torch.float32, max_position_embeddings=48)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=TOKENIZER, bos_token="<s>", eos_token="<|im_end|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    lines = []
    for i in range(6):
        text = " ".join(WORDS[: 4 + i] * (1 + i))  # some exceed the context length
        lines.append({"question": text, "choices": ["boat", "sea, I say", "in"], "answer": i % 3, "text": text})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name, more in TASKS.items():
        to = {"whole": '""', "written": '"x"', "last_word": '" sea"'}.get(name, '"{{answer}}"')
        of = '"{{text}}"' if name == "whole" else '"{{question}}"'
        task = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'data.jsonl'}}}}}\n"
        target = of if name == "whole" else to
        task += f"test_split: test\ndoc_to_text: {to if name == 'whole' else of}\ndoc_to_target: {target}\n{more}"
        (folder / f"{name}.yaml").write_text(task)
    return folder


def evaluate(model, tasks):
    """Return all answers of the model by task."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    done = lm_eval.simple_evaluate(model=model, tasks=[*TASKS], task_manager=manager, bootstrap_iters=0, log_samples=True)
    return {name: [sample["resps"] for sample in done["samples"][name]] for name in TASKS}


def flat(answers):
    return [x for answer in answers for x in (flat(answer) if isinstance(answer, list | tuple) else [answer])]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def reference(folder, tasks):
    return evaluate(HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2), tasks)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_unbounded_results_equal_the_hf_model(batch_size, folder, tasks, reference):
    cell = converters.load(folder)
    ours = evaluate(HarnessLM(cell, converters.tokenizer(folder), batch_size=batch_size), tasks)
    for name in TASKS:
        for a, b in zip(flat(ours[name]), flat(reference[name]), strict=True):
            assert a == (pytest.approx(b, abs=2e-3) if isinstance(b, float) else b), name
    assert any(flat(ours["written"]))


def test_bounded_results_equal_those_of_the_operator(folder, tasks, reference):
    cell, tokenizer = converters.load(folder), converters.tokenizer(folder)
    lm = HarnessLM(cell, tokenizer, reduction="tova:5", batch_size=3)
    ours = evaluate(lm, tasks)
    context = tokenizer.encode(" ".join(WORDS[:4])).ids
    continuation = tokenizer.encode(" sea, I say", add_special_tokens=False).ids
    logits, _ = cell(torch.tensor([context + continuation]), cell.initial_state(1, "tova:5"))
    right = logits[0, len(context) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum()
    assert flat(ours["choice"][0])[2] == pytest.approx(float(right), abs=1e-3)
    prompt, state, eos = torch.tensor([context]), cell.initial_state(1, "tova:5"), cell.config.eos_token_ids
    new, _, _ = msrnn.generate(cell, prompt, state, max_new_tokens=12, eos_token_id=eos)
    assert flat(ours["written"][0])[0] == tokenizer.decode(new[0].tolist()).split("e")[0].split("\n\n")[0]
    assert flat(ours["choice"]) != flat(reference["choice"])


def test_sampling_uses_the_seed_of_the_harness(folder):
    lm = HarnessLM(converters.load(folder), converters.tokenizer(folder))
    wanted, drawn = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.5, "top_k": 30}, []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(lm._continue("the sea", wanted))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("special", "prefix", "end"),
    [({}, 3, 2), ({"eos_token_ids": (2, 4)}, 3, 2), ({"bos_token_id": None}, 2, 2), ({"eos_token_ids": ()}, 3, 3)],
)
def test_the_prefix_is_bos_and_the_end_is_eos_if_the_model_has_them(special, prefix, end, folder):
    cell = converters.load(folder)
    cell.config = replace(cell.config, **{"bos_token_id": 3, "eos_token_ids": (2,), **special})
    lm = HarnessLM(cell, TOKENIZER)
    assert (lm.prefix_token_id, lm.eot_token_id) == (prefix, end)


def test_a_model_without_special_tokens_is_refused(folder):
    cell = converters.load(folder)
    cell.config = replace(cell.config, bos_token_id=None, eos_token_ids=())
    with pytest.raises(msrnn.Error, match="no bos and no eos token"):
        HarnessLM(cell, TOKENIZER)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"batch_size": "auto"}, "batch_size is 'auto'"), ({"reduction": "tovaa:5"}, "no operator is called 'tovaa'")],
)
def test_invalid_settings_are_refused_by_the_constructor(settings, message, folder):
    with pytest.raises(msrnn.Error, match=message):
        HarnessLM(converters.load(folder), converters.tokenizer(folder), **settings)


def test_the_model_is_registered_as_msrnn(folder, tasks):
    register()
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    named = {"model": "msrnn", "tasks": ["choice"], "task_manager": manager, "bootstrap_iters": 0, "device": "cuda:0"}
    done = lm_eval.simple_evaluate(model_args=f"pretrained={folder},reduction=tova:5,dtype=float32", batch_size=2, **named)
    lm = HarnessLM(converters.load(folder), converters.tokenizer(folder), "tova:5")
    assert flat(s["resps"] for s in done["samples"]["choice"]) == pytest.approx(flat(evaluate(lm, tasks)["choice"]), abs=1e-3)
    with pytest.raises(msrnn.Error, match="dtype is 'float33'"):
        lm_eval.simple_evaluate(model_args=f"pretrained={folder},dtype=float33", **named)


def test_the_command_calls_that_of_the_harness(monkeypatch, capsys):
    calls, before = [], sys.argv

    def reference():
        calls.append(sys.argv)
        if len(calls) == 2:
            raise msrnn.Error("refused")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", reference)
    words = ["--help", "run", "--model", "msrnn", "--", "-x", "a b", "--model_args", "pretrained=x"]
    assert (main(["lm-eval", *words]), main(["lm-eval"])) == (0, 1)
    assert calls == [["msrnn lm-eval", *words], ["msrnn lm-eval"]]
    assert sys.argv is before
    assert capsys.readouterr().err == "msrnn: refused\n"
