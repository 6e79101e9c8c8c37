"""The last layer where one token of each document is asked for: keys and values of all tokens, everything else of those alone.

A layer's output at a token reads the other tokens by their keys and values and by nothing else. So where documents are pooled at their first or last
token, the last layer's queries, output projection and feed-forward part are computed for as many tokens as there are documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from clinpeft.runtime.packed_attention import SequenceLengths

if TYPE_CHECKING:
    Layer = torch.nn.Module
else:
    Layer = object


@dataclass(frozen=True)
class PooledTokens:
    """One token of each document.

    Attributes:
        sequence_lengths: where the documents of a row lie.
        positions: (documents,) where in the row the token of each is.
    """

    sequence_lengths: SequenceLengths
    positions: torch.Tensor


class _PooledTokenLayer(Layer):
    """A layer that answers for all tokens, unless it is asked for ``ends``: (1, tokens, width) -> (1, documents, width)."""

    is_bidirectional = True
    """Whether a token sees those after it."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        ends: PooledTokens | None = None,
        **kwargs: Any,
    ) -> Any:
        if ends is None:
            return super().forward(hidden_states, *args, **kwargs)
        return self._forward_pooled_tokens(hidden_states, ends, **kwargs)

    def _forward_pooled_tokens(
        self, hidden: torch.Tensor, pooled_tokens: PooledTokens, **kwargs: Any
    ) -> torch.Tensor:
        raise NotImplementedError


class _PooledDecoderLayer(_PooledTokenLayer):
    """Of LLaMA, and of those that are built like it."""

    is_bidirectional = False

    def _forward_pooled_tokens(
        self, hidden: torch.Tensor, pooled_tokens: PooledTokens, **kwargs: Any
    ) -> torch.Tensor:
        layer: Any = self
        attention, (cos, sin) = layer.self_attn, kwargs["position_embeddings"]
        read = layer.input_layernorm(hidden)
        query = _split_heads(
            attention.q_proj(read[:, pooled_tokens.positions]),
            attention.head_dim,
            getattr(attention, "q_norm", None),
        )
        key = _split_heads(
            attention.k_proj(read), attention.head_dim, getattr(attention, "k_norm", None)
        )
        value = _split_heads(attention.v_proj(read), attention.head_dim)
        query, key = (
            _apply_rotary_positions(
                query, cos[:, pooled_tokens.positions], sin[:, pooled_tokens.positions]
            ),
            _apply_rotary_positions(key, cos, sin),
        )
        window = getattr(
            attention, "sliding_window", getattr(attention.config, "sliding_window", None)
        )
        found = hidden[:, pooled_tokens.positions] + attention.o_proj(
            _attend_pooled_tokens(
                query, key, value, pooled_tokens.sequence_lengths, attention.scaling, window
            )
        )
        answer: torch.Tensor = found + layer.mlp(layer.post_attention_layernorm(found))
        return answer


class _PooledEncoderLayer(_PooledTokenLayer):
    """Of BERT, and of those that are built like it."""

    def _forward_pooled_tokens(
        self, hidden: torch.Tensor, pooled_tokens: PooledTokens, **kwargs: Any
    ) -> torch.Tensor:  # noqa: ARG002
        layer: Any = self
        inside, width = layer.attention.self, layer.attention.self.attention_head_size
        query = _split_heads(inside.query(hidden[:, pooled_tokens.positions]), width)
        key, value = (
            _split_heads(inside.key(hidden), width),
            _split_heads(inside.value(hidden), width),
        )
        found = _attend_pooled_tokens(
            query, key, value, pooled_tokens.sequence_lengths, inside.scaling, None
        )
        answer: torch.Tensor = layer.feed_forward_chunk(
            layer.attention.output(found, hidden[:, pooled_tokens.positions])
        )
        return answer


def _create_pooled_layer_class(layer: type[Any], mixin: type[_PooledTokenLayer]) -> type[Any]:
    return type(f"Ending{layer.__name__}", (mixin, layer), {})


POOLED_LAYER_CLASSES: dict[type[Any], type[Any]] = {
    **{
        layer: _create_pooled_layer_class(layer, _PooledDecoderLayer)
        for layer in (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
    },
    **{
        layer: _create_pooled_layer_class(layer, _PooledEncoderLayer)
        for layer in (BertLayer, RobertaLayer, XLMRobertaLayer)
    },
}
"""Layer as transformers has it -> the same, which can be asked for ends."""


def install_pooled_layer(backbone: Any) -> None:
    """Let the last layer of a model be asked for ends, where it is of a kind that can."""
    last = _get_last_layer(backbone)
    if type(last) in POOLED_LAYER_CLASSES:
        last.__class__ = POOLED_LAYER_CLASSES[type(last)]


def select_pooled_tokens(
    backbone: Any, sequence_lengths: SequenceLengths, pooling: str
) -> PooledTokens | None:
    """What to ask ``backbone`` for, so that it answers for the ``last`` or first (``cls``) token of each document alone; None where it cannot.

    Not with dropout: fewer numbers would be drawn than where all tokens are computed, and a trial among others would not learn what it learns alone.
    """
    last = _get_last_layer(backbone)
    able = isinstance(last, _PooledTokenLayer) and (
        pooling == "last" or (pooling == "cls" and last.is_bidirectional)
    )
    if not able or last is None or (last.training and _has_dropout(last)):
        return None
    after = torch.tensor(sequence_lengths.lengths).cumsum(0)
    places = after - 1 if pooling == "last" else after - torch.tensor(sequence_lengths.lengths)
    return PooledTokens(sequence_lengths, places.to(next(last.parameters()).device))


def _get_last_layer(backbone: Any) -> torch.nn.Module | None:
    """The last of the layers, under either of the names that the families have for them."""
    layers: Sequence[torch.nn.Module] = (
        getattr(backbone, "layers", None)
        or getattr(getattr(backbone, "encoder", None), "layer", None)
        or [None]
    )
    return layers[-1]


def _has_dropout(layer: torch.nn.Module) -> bool:
    shares = [module.p for module in layer.modules() if isinstance(module, torch.nn.Dropout)]
    return any(shares) or any(
        getattr(module, "attention_dropout", 0.0) for module in layer.modules()
    )


def _split_heads(projection: torch.Tensor, head_width: int, norm: Any = None) -> torch.Tensor:
    """(1, tokens, heads * width) -> (1, heads, tokens, width)."""
    split = projection.view(1, projection.shape[1], -1, head_width)
    return (split if norm is None else norm(split)).transpose(1, 2)


def _apply_rotary_positions(
    states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864), in halves as in transformers."""
    first, second = states.chunk(2, dim=-1)
    return states * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def _attend_pooled_tokens(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sequence_lengths: SequenceLengths,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    """(1, heads, documents, width) queries of one token each, and (1, heads, tokens, width) twice -> (1, documents, heads * width).

    A token that sees none after it is the last of its document here, so that it sees all of it, or what the window leaves.
    """
    dtype = query.dtype
    if (
        query.device.type == "cpu" and dtype == torch.bfloat16
    ):  # as in ``attention``: its backward is slow
        query, key, value = query.float(), key.float(), value.float()
    queries = torch.split(
        query[0].transpose(0, 1)[:, :, None],
        [count for count, _ in sequence_lengths.equal_length_runs],
    )  # (documents, heads, 1, width)
    sides = [torch.split(part, list(sequence_lengths.run_tokens), dim=2) for part in (key, value)]
    found = []
    for (count, length), asked, *both in zip(
        sequence_lengths.equal_length_runs, queries, *sides, strict=True
    ):
        keys, values = (
            part[0]
            .view(part.shape[1], count, length, -1)
            .transpose(0, 1)[:, :, -window if window else 0 :]
            for part in both
        )
        shared = asked.shape[1] != keys.shape[1]  # several heads of queries read the same keys
        found.append(
            functional.scaled_dot_product_attention(
                asked, keys, values, scale=scaling, enable_gqa=shared
            )
        )
    return torch.cat(found)[:, :, 0].reshape(1, len(sequence_lengths.lengths), -1).to(dtype)
