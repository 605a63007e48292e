"""lm-evaluation-harness: local tasks through HTTP and over ZeroMQ, with equal scores throughout."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import lm_eval
from checks import ENDPOINT, MODEL, URL, Checks
from lm_eval.tasks import TaskManager
from servers import serving

import radixrt
import radixrt.integrations.lm_eval

HELD_OUT = Path(radixrt.__file__).parent / "models" / "nano" / "heldout"
LIMIT = 24
checks = Checks()


def write_tasks(directory: Path) -> None:
    """A task of each kind over the shipped model's held-out data."""
    for name in ("sentiment", "sentiment_shots", "arithmetic"):
        (directory / f"{name}.jsonl").write_text((HELD_OUT / f"{name}.jsonl").read_text())
    (directory / "mood.yaml").write_text(f"""\
task: mood
dataset_path: json
dataset_kwargs:
  data_files:
    test: {directory}/sentiment.jsonl
    train: {directory}/sentiment_shots.jsonl
output_type: multiple_choice
test_split: test
fewshot_split: train
num_fewshot: 8
doc_to_text: "Review: {{{{text}}}}\\nSentiment:"
doc_to_target: label
doc_to_choice: ["negative", "neutral", "positive"]
metric_list:
  - metric: acc
  - metric: acc_norm
""")
    (directory / "sums.yaml").write_text(f"""\
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {directory}/arithmetic.jsonl
output_type: generate_until
test_split: test
doc_to_text: "Question: What is {{{{a}}}} {{{{op}}}} {{{{b}}}}?\\nAnswer:"
doc_to_target: answer
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
  do_sample: false
filter_list:
  - name: stripped
    filter:
      - function: regex
        regex_pattern: "(-?[0-9]+)"
      - function: take_first
metric_list:
  - metric: exact_match
""")
    (directory / "reviews.yaml").write_text(f"""\
task: reviews
dataset_path: json
dataset_kwargs:
  data_files:
    test: {directory}/sentiment.jsonl
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
""")


def scores(model: str, arguments: dict[str, Any], tasks: list[str], **options: Any) -> Any:
    """The metrics of each task, without their error bars."""
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=tasks,
        task_manager=manager,
        limit=LIMIT,
        bootstrap_iters=0,
        **options,
    )
    return {
        task: {k: v for k, v in metrics.items() if isinstance(v, float) and "stderr" not in k}
        for task, metrics in found["results"].items()
    }


def assert_equal(found: Any, expected: Any) -> None:
    """The same answers to the last row; perplexities up to the rounding of bfloat16, which depends
    on what is computed in one step."""
    for task, metrics in expected.items():
        for name, value in metrics.items():
            if "perplexity" in name:
                continue  # the exponential of what follows
            allowed = 2e-3 * abs(value) if "bits" in name else 0.0
            assert abs(found[task][name] - value) <= allowed, (task, name, found[task][name], value)


def at(url: str, path: str) -> dict[str, Any]:
    return {"model": MODEL, "base_url": f"{url}/v1/{path}", "num_concurrent": 8, "max_retries": 1}


def counter(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def flush() -> None:
    request = urllib.request.Request(f"{URL}/flush_cache", data=b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


directory = Path(tempfile.mkdtemp())
write_tasks(directory)
manager = TaskManager(include_path=str(directory), include_defaults=False)
ALL = ["mood", "sums", "reviews"]
found: dict[str, Any] = {}

with checks.that("local-completions, tokenized by the server: choices, perplexity, generation"):
    found["http"] = scores("local-completions", at(URL, "completions"), ALL)
    print(json.dumps(found["http"]))
    assert found["http"]["mood"]["acc,none"] > 0.9
    assert found["http"]["sums"]["exact_match,stripped"] > 0.9
    assert found["http"]["reviews"]["bits_per_byte,none"] > 0

with checks.that("the same scores from a warm cache"):
    assert_equal(scores("local-completions", at(URL, "completions"), ALL), found["http"])

with checks.that("the same scores after a flush"):
    flush()
    assert_equal(scores("local-completions", at(URL, "completions"), ALL), found["http"])

with checks.that("the same scores in batches of one request"):
    batched = {**at(URL, "completions"), "batch_size": 8, "num_concurrent": 1}
    assert_equal(scores("local-completions", batched, ALL), found["http"])

with checks.that("over ZeroMQ: the same scores as over HTTP"):
    found["zmq"] = scores("radixrt", {"endpoint": ENDPOINT}, ALL)
    print(json.dumps(found["zmq"]))
    assert_equal(found["zmq"], found["http"])

with (
    checks.that("a server without a cache: the same scores, both ways"),
    serving("--no-cache") as other,
):
    assert_equal(scores("local-completions", at(other.url, "completions"), ALL), found["http"])
    assert_equal(scores("radixrt", {"endpoint": other.endpoint}, ALL), found["http"])

with (
    checks.that("a server whose cache holds a few prompts: the same scores after evictions"),
    serving("--memory", "45MiB", "--max-running", "4") as small,
):
    assert_equal(scores("local-completions", at(small.url, "completions"), ALL), found["http"])
    assert_equal(scores("radixrt", {"endpoint": small.endpoint}, ALL), found["http"])
    evicted = counter(small.url, "radixrt_evicted_tokens_total")
    assert evicted > 1000, evicted
    checks.note(f"on a server of 45 MiB {evicted:,.0f} tokens were evicted meanwhile")

with checks.that("local-chat-completions, without any tokenizer: generation"):
    chats = [
        scores(
            "local-chat-completions",
            at(URL, "chat/completions"),
            ["sums"],
            apply_chat_template=True,
        )
        for _ in range(2)
    ]
    assert chats[0] == chats[1]
    assert 0 <= chats[0]["sums"]["exact_match,stripped"] <= 1

with checks.that("a chat template over ZeroMQ: the same as through the chat endpoint"):
    own = scores("radixrt", {"endpoint": ENDPOINT}, ["sums"], apply_chat_template=True)
    assert own == chats[0], (own, chats[0])

with checks.that("lm_eval's own command line knows the model"):
    command = ["-m", "radixrt.integrations.lm_eval", "run", "--model", "radixrt"]
    command += ["--model_args", f"endpoint={ENDPOINT}", "--tasks", "sums", "--limit", "8"]
    command += ["--include_path", str(directory)]
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-300:]
    assert "exact_match" in ended.stdout

accuracy = found.get("http", {}).get("mood", {}).get("acc,none")
checks.note(
    f"{LIMIT} rows a task; accuracy {accuracy}, equal over HTTP, over ZeroMQ, from a warm cache, "
    "after a flush and without a cache; bits per byte agree to 0.2 %, what bfloat16 rounds depends "
    "on what is computed in one step"
)
checks.end()
