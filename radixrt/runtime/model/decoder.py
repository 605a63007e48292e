"""The decoder-only transformer; families configure it, ``Ops`` and ``AttentionBackend`` run it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.model.config import ModelConfig
from radixrt.runtime.model.rope import RopeSpec, cos_sin_table
from radixrt.runtime.model.weights import WeightSource
from radixrt.runtime.ops.base import Ops


class WeightReader:
    """Reads tensors in the model's dtype on the model's device, fused along the rows if need be."""

    def __init__(self, source: WeightSource, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._source = source

    def one(self, name: str) -> torch.Tensor:
        """Return a tensor; still the mapped file's memory where dtype and device allow."""
        if self.device.type == "cpu":
            return self._source.read(name).to(self.device, self.dtype)
        return self.fused(name)

    def fused(self, *names: str) -> torch.Tensor:
        """Return tensors one below the other in one new tensor; the parts are not kept."""
        shapes = [self._source.shapes[name] for name in names]
        rows = [shape[0] for shape in shapes]
        out = torch.empty((sum(rows), *shapes[0][1:]), dtype=self.dtype, device=self.device)
        for name, part in zip(names, torch.split(out, rows), strict=True):
            self._source.copy(name, part)
        return out


class DecoderLayer:
    """One layer's weights, under the checkpoint's names; q, k, v and gate, up are fused."""

    def __init__(
        self, config: ModelConfig, index: int, read: WeightReader, cos_sin: torch.Tensor
    ) -> None:
        prefix = f"model.layers.{index}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qkv = [attention + f"{part}_proj" for part in "qkv"]
        gate_up = [mlp + "gate_proj", mlp + "up_proj"]
        self.cos_sin = cos_sin
        self.input_layernorm = read.one(prefix + "input_layernorm.weight")
        self.qkv_proj = read.fused(*(name + ".weight" for name in qkv))
        self.qkv_bias: torch.Tensor | None = None
        if config.qkv_bias:
            self.qkv_bias = read.fused(*(name + ".bias" for name in qkv))
        self.q_norm: torch.Tensor | None = None
        self.k_norm: torch.Tensor | None = None
        if config.qk_norm:
            self.q_norm = read.one(attention + "q_norm.weight")
            self.k_norm = read.one(attention + "k_norm.weight")
        self.o_proj = read.one(attention + "o_proj.weight")
        self.o_bias = read.one(attention + "o_proj.bias") if config.output_bias else None
        # With post-norms the checkpoint's post_attention_layernorm is one, and the norm in front of
        # the MLP has a name of its own; without, it goes by that name.
        self.post_attention_norm: torch.Tensor | None = None
        self.post_mlp_norm: torch.Tensor | None = None
        if config.post_norms:
            self.post_attention_norm = read.one(prefix + "post_attention_layernorm.weight")
            self.mlp_norm = read.one(prefix + "pre_feedforward_layernorm.weight")
            self.post_mlp_norm = read.one(prefix + "post_feedforward_layernorm.weight")
        else:
            self.mlp_norm = read.one(prefix + "post_attention_layernorm.weight")
        self.gate_up_proj = read.fused(*(name + ".weight" for name in gate_up))
        self.gate_up_bias: torch.Tensor | None = None
        if config.mlp_bias:
            self.gate_up_bias = read.fused(*(name + ".bias" for name in gate_up))
        self.down_proj = read.one(mlp + "down_proj.weight")
        self.down_bias = read.one(mlp + "down_proj.bias") if config.mlp_bias else None


class Wanted(NamedTuple):
    """The tokens whose logits are wanted, behind the last layer's attention: what it returned
    [R, num_heads * head_dim], and the residual beside it [R, hidden_size]."""

    attended: torch.Tensor
    residual: torch.Tensor


class CausalLM:
    """A decoder-only transformer with its weights on one device; immutable once built."""

    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        *,
        device: torch.device,
        dtype: torch.dtype,
        ops: Ops,
    ) -> None:
        read = WeightReader(source, device, dtype)
        tables: dict[RopeSpec, torch.Tensor] = {}
        for rope in config.ropes:
            if rope not in tables:
                table = cos_sin_table(rope, config.head_dim, config.context_length)
                tables[rope] = torch.from_numpy(table).to(device)
        self.config = config
        self.device = device
        self.dtype = dtype
        self.embed_tokens = read.one("model.embed_tokens.weight")
        self.layers = tuple(
            DecoderLayer(config, index, read, tables[rope])
            for index, rope in enumerate(config.ropes)
        )
        self.norm = read.one("model.norm.weight")
        self.lm_head = self.embed_tokens if config.tied_head else read.one("lm_head.weight")
        self._ops = ops
        self._norms_after = (*(layer.input_layernorm for layer in self.layers[1:]), self.norm)
        self._heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        # Gemma rounds the factor to the weights' dtype, and so was it trained.
        self._embedding_scale = float(torch.tensor(config.embedding_scale, dtype=dtype))

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of all weights, a tied head counted once; rotary tables not included."""
        tensors = [self.embed_tokens, self.norm]
        tensors += [] if self.config.tied_head else [self.lm_head]
        for layer in self.layers:
            tensors += [
                value
                for name, value in vars(layer).items()
                if isinstance(value, torch.Tensor) and name != "cos_sin"
            ]
        return sum(tensor.nbytes for tensor in tensors)

    def forward(
        self,
        batch: ForwardBatch,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        attention: AttentionBackend,
    ) -> torch.Tensor:
        """Return the logits [R, vocab_size] of ``batch.logits_rows``: ``head(trunk(...))``."""
        return self.head(self.trunk(batch, k_cache, v_cache, attention))

    def trunk(
        self,
        batch: ForwardBatch,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        attention: AttentionBackend,
    ) -> Wanted:
        """Return what the head makes logits of, R rows for ``batch.logits_rows``.

        ``k_cache`` and ``v_cache`` [num_layers, num_pages, page_size, Hk, D] are written at
        ``batch.kv_slots``. ``attention`` has been planned for the batch. Call it under
        ``torch.inference_mode()``; nothing is read back from the device.
        """
        config, ops = self.config, self._ops
        eps, add_one = config.rms_norm_eps, config.norm_add_one
        num_tokens = batch.input_ids.shape[0]
        last = len(self.layers) - 1
        residual = F.embedding(batch.input_ids, self.embed_tokens)
        if self._embedding_scale != 1.0:
            residual = residual * self._embedding_scale
        x = ops.rms_norm(residual, self.layers[0].input_layernorm, eps, add_one=add_one)
        k_pools, v_pools = k_cache.unbind(0), v_cache.unbind(0)
        for index, layer in enumerate(self.layers):
            k_pool, v_pool = k_pools[index], v_pools[index]
            qkv = ops.linear(x, layer.qkv_proj, layer.qkv_bias)
            query, key, value = qkv.view(num_tokens, -1, config.head_dim).split_with_sizes(
                self._heads, 1
            )
            if layer.q_norm is not None and layer.k_norm is not None:
                query = ops.rms_norm(query, layer.q_norm, eps, add_one=add_one)
                key = ops.rms_norm(key, layer.k_norm, eps, add_one=add_one)
            ops.rope_kv_write(
                query,
                key,
                value,
                batch.positions,
                layer.cos_sin,
                k_pool,
                v_pool,
                batch.kv_slots,
            )
            if index == last and not batch.logits_rows.shape[0]:
                return Wanted(query[:0].flatten(1), residual[:0])  # every K and V is written
            attended = attention.run(index, query, k_pool, v_pool).flatten(1)
            if index < last:
                x, residual = self._finish(index, attended, residual)
        # From here on tokens go their own ways: only those with wanted logits go on.
        # (Not by `[]`: on a CPU its threads spin for milliseconds after a handful of rows.)
        return Wanted(
            attended.index_select(0, batch.logits_rows),
            residual.index_select(0, batch.logits_rows),
        )

    def head(self, wanted: Wanted) -> torch.Tensor:
        """Return the logits [R, vocab_size] of what ``trunk`` returned, in the model's dtype, or
        f32 on a CPU and where they are capped. May write to what it was given."""
        if not wanted.residual.shape[0]:
            dtype = torch.float32 if self.device.type == "cpu" else self.dtype
            return torch.empty((0, self.config.vocab_size), dtype=dtype, device=self.device)
        x, _ = self._finish(len(self.layers) - 1, wanted.attended, wanted.residual)
        logits = self._ops.linear(x, self.lm_head)
        softcap = self.config.final_softcap
        if softcap:
            return torch.tanh(logits.float() / softcap) * softcap
        # On a GPU a second copy of twice the size would take longer than sampling.
        return logits.float() if logits.device.type == "cpu" else logits

    def _finish(
        self, index: int, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's output for what its attention returned, normed for what follows, and
        the residual. It may lie in the memory of the arguments."""
        layer, act = self.layers[index], self.config.activation
        x, residual = self._add(
            attended,
            layer.o_proj,
            layer.o_bias,
            layer.post_attention_norm,
            residual,
            layer.mlp_norm,
        )
        x = self._ops.gated_linear(x, layer.gate_up_proj, layer.gate_up_bias, act)
        return self._add(
            x,
            layer.down_proj,
            layer.down_bias,
            layer.post_mlp_norm,
            residual,
            self._norms_after[index],
        )

    def _add(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        post_norm: torch.Tensor | None,
        residual: torch.Tensor,
        norm: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual with the product of x added to it, behind ``norm``, and as it is."""
        ops, eps, add_one = self._ops, self.config.rms_norm_eps, self.config.norm_add_one
        if post_norm is None:
            return ops.linear_add_rms_norm(x, weight, bias, residual, norm, eps, add_one=add_one)
        x = ops.rms_norm(ops.linear(x, weight, bias), post_norm, eps, add_one=add_one)
        return ops.add_rms_norm(x, residual, norm, eps, add_one=add_one)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a checkpoint of this config must hold."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = [
        ("self_attn.q_proj", queries, hidden, config.qkv_bias),
        ("self_attn.k_proj", keys, hidden, config.qkv_bias),
        ("self_attn.v_proj", keys, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, queries, config.output_bias),
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    ]
    norms = [("input_layernorm", hidden), ("post_attention_layernorm", hidden)]
    if config.post_norms:
        norms += [("pre_feedforward_layernorm", hidden), ("post_feedforward_layernorm", hidden)]
    if config.qk_norm:
        norms += [("self_attn.q_norm", config.head_dim), ("self_attn.k_norm", config.head_dim)]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        for name, rows, columns, has_bias in projections:
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        for name, width in norms:
            shapes[f"{prefix}{name}.weight"] = (width,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied_head:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes
