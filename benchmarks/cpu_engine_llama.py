"""The llama.cpp side of cpu_engine.py: runs in a virtual environment that has llama-cpp-python and
gguf, converts the model directory to a bf16 GGUF once, then measures one workload per input line.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a Qwen2 tensor."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def convert(model: Path, target: Path) -> None:
    """Write the model's bf16 safetensors as a GGUF without a vocabulary."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    raw = np.memmap(model / "model.safetensors", mode="r", dtype=np.uint8)
    header_size = int(raw[:8].view("<u8")[0])
    header = json.loads(raw[8 : 8 + header_size].tobytes())
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        data = raw[8 + header_size + begin : 8 + header_size + end].view("<u2")
        if len(entry["shape"]) == 1:  # llama.cpp wants norms and biases in f32
            writer.add_tensor(gguf_name(name), (data.astype("<u4") << 16).view("<f4"))
        else:
            words = data.reshape(entry["shape"]).view(np.uint8)
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), words, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Llama:
    """A context of llama.cpp, driven by token ids."""

    def __init__(self, path: Path, threads: int) -> None:
        llama_cpp.llama_log_set(QUIET, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = 32 * 1024
        context.n_batch, context.n_ubatch = 2048, 512
        context.n_seq_max = 32
        context.kv_unified = True
        context.n_threads = context.n_threads_batch = threads
        context.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def clear(self) -> None:
        """Forget every sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Compute (token, position, sequence, wants logits) rows."""
        batch = self.batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.n_tokens = len(rows)
        status = llama_cpp.llama_decode(self.context, batch)
        assert status == 0, status

    def argmax(self, row: int) -> int:
        """Return the most likely token of a computed row."""
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())

    def prompt(self, token_ids: list[int], sequence: int = 0) -> int:
        """Compute a prompt; return the token after it."""
        last = len(token_ids) - 1
        self.decode([(t, i, sequence, i == last) for i, t in enumerate(token_ids)])
        return self.argmax(last)


@llama_cpp.llama_log_callback
def QUIET(level: int, text: bytes, data: ctypes.c_void_p) -> None:  # noqa: N802
    """Drop llama.cpp's log."""


def measure(llama: Llama, job: dict[str, object]) -> float:
    """Return the seconds of a workload, see cpu_engine.py."""
    llama.clear()
    chooser = random.Random(str(job))

    def draw(n: int) -> list[int]:
        return [chooser.randrange(1000, 100_000) for _ in range(n)]

    prompt_len, new, rows = int(job["prompt"]), int(job["new"]), int(job["rows"])
    if job["kind"] == "prefill":
        ids = draw(prompt_len)
        begin = time.perf_counter()
        llama.prompt(ids)
        return time.perf_counter() - begin
    if job["kind"] == "decode":
        token, begin = llama.prompt(draw(prompt_len)), time.perf_counter()
        for step in range(new - 1):
            llama.decode([(token, prompt_len + step, 0, True)])
            token = llama.argmax(0)
        return time.perf_counter() - begin
    prompts = [draw(prompt_len) for _ in range(rows)]
    begin = time.perf_counter()
    flat = [
        (t, i, s, i == prompt_len - 1) for s, ids in enumerate(prompts) for i, t in enumerate(ids)
    ]
    llama.decode(flat)
    tokens = [llama.argmax((s + 1) * prompt_len - 1) for s in range(rows)]
    for step in range(new - 1):
        llama.decode([(t, prompt_len + step, s, True) for s, t in enumerate(tokens)])
        tokens = [llama.argmax(s) for s in range(rows)]
    return time.perf_counter() - begin


def main() -> None:
    """Arguments: model directory, threads."""
    model, threads = Path(sys.argv[1]), int(sys.argv[2])
    path = model / "model-bf16.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        convert(model, partial)
        partial.rename(path)
    llama = Llama(path, threads)
    print(json.dumps({"ready": f"llama.cpp {llama_cpp.__version__} bf16"}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": measure(llama, json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
