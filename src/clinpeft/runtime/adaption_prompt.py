"""The adaption prompt's attention, without doing again what the attention below it has done: query,
value and output are projected once.

peft (0.21) lets the attention run, then projects the same vectors to queries and values a second
time, since it is not given them, and projects the prompt's share of the output by itself. Here the
query is taken as it leaves its projection, and the share joins the attention's own before both go
through the output's. Weights, names, switching and files are peft's own; the numbers are peft's but
for the order in which float32 adds up. Where a LoRA with dropout sits on one of these projections,
one draw counts for both uses, where peft draws twice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.adaption_prompt import AdaptedAttention
from peft.tuners.adaption_prompt.utils import llama_rotate_half
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional


class SingleProjectionAttention(AdaptedAttention):  # type: ignore[misc]
    """peft's adapted attention of LLaMA and Mistral (Zhang et al. 2023, equation 5)."""

    def forward(self, **kwargs: Any) -> Any:
        """As the attention below: keywords in, (vectors, weights) out."""
        queries: list[torch.Tensor] = []
        watching = [
            self.model.q_proj.register_forward_hook(lambda _, __, query: queries.append(query)),
            self.model.o_proj.register_forward_pre_hook(
                lambda _, given: (
                    self._add_prompt_attention(
                        given[0], queries.pop(), kwargs["position_embeddings"]
                    ),
                )
            ),
        ]
        try:
            return self.model(**kwargs)
        finally:
            for hook in watching:
                hook.remove()

    def _add_prompt_attention(
        self,
        attention_output: torch.Tensor,
        query: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """What the output projection reads: (rows, time, heads * width of a head), the prompt's
        share added behind its gate."""
        rows, time, _ = attention_output.shape
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        query = query.view(rows, time, -1, self.model.head_dim).transpose(1, 2)
        query = query * cos + llama_rotate_half(query) * sin  # (rows, heads, time, width of a head)
        key, value = (
            self._project_prompt(projection, query.shape[1])
            for projection in (self.model.k_proj, self.model.v_proj)
        )
        scores = torch.matmul(query, key.transpose(2, 3).to(query.dtype)) / math.sqrt(
            self.model.head_dim
        )
        weights = self.adaption_gate * functional.softmax(scores, dim=-1, dtype=torch.float32).to(
            query.dtype
        )
        share = torch.matmul(weights, value).transpose(1, 2).reshape(rows, time, -1)
        return attention_output + share.to(attention_output.dtype)

    def _project_prompt(self, projection: torch.nn.Module, num_heads: int) -> torch.Tensor:
        """(1, heads, prompt, width of a head), the same for every row."""
        projected: torch.Tensor = projection(self.adaption_prompt)
        split = projected.view(1, self.adapter_len, -1, self.model.head_dim).transpose(1, 2)
        return split.repeat_interleave(num_heads // split.shape[1], dim=1)


def use_single_projection(model: torch.nn.Module) -> None:
    """Every adaption prompt of a peft model gets ``OnceProjected``, but where the output has a
    bias, which peft adds once more for the prompt."""
    for module in model.modules():
        if type(module) is AdaptedAttention and _get_output_projection(module).bias is None:
            module.__class__ = SingleProjectionAttention


def _get_output_projection(attention: AdaptedAttention) -> Any:
    projection = attention.model.o_proj
    return projection.get_base_layer() if isinstance(projection, BaseTunerLayer) else projection
