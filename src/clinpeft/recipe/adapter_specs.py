"""The adapters of a recipe: one spec for each method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clinpeft.recipe.spec import DropoutProbability, PositiveCount, RecipeSpec


class AdapterSpec(RecipeSpec):
    """One adapter of the stack, first to last.

    Attributes:
        method: one of the methods below.
        from_run: the run (id or name) whose adapter is loaded, ``RUN/NAME`` where it has several;
            empty: a new one.
        trainable: false freezes it.
        merged: whether a frozen adapter is merged into the base before anything else is attached.
        active: false leaves it out of the forward pass, as the published code did with its second
            adapter; for comparison only.
    """

    from_run: str = ""
    trainable: bool = True
    merged: bool = False
    active: bool = True


class LoraSpec(AdapterSpec):
    """Low-rank update W + (alpha / rank) B A (Hu et al. 2021, arXiv 2106.09685, equation 3).

    ``rslora`` scales by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732); ``dora`` also
    trains the magnitude of W's columns (Liu et al. 2024, arXiv 2402.09353).

    Attributes:
        rank: rows of A and columns of B.
        alpha: numerator of the scale of the update.
        dropout: on the input of A, while training.
        targets: suffixes of module names; empty: those of the model family (query and value).
    """

    # One spec for three methods, which have the same keys
    method: Literal["lora", "rslora", "dora"] = "lora"
    rank: PositiveCount = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: DropoutProbability = 0.0
    targets: tuple[str, ...] = ()


class Ia3Spec(AdapterSpec):
    """IA3: trained factors of keys, values and the feed-forward activation.

    Initialized to 1, so that a new adapter changes nothing (Liu et al. 2022, arXiv 2205.05638).
    """

    method: Literal["ia3"] = "ia3"


class AdaptionPromptSpec(AdapterSpec):
    """LLaMA-Adapter: prompt vectors in each of the last layers, behind a gate initialized to 0.

    (Zhang et al. 2023, arXiv 2303.16199.)

    Attributes:
        tokens: prompt vectors of a layer.
        layers: number of last layers; more than the base has means all of them, and the run
            reports it.
    """

    method: Literal["adaption-prompt"] = "adaption-prompt"
    tokens: PositiveCount = 10
    layers: PositiveCount = 30


class PrefixSpec(AdapterSpec):
    """Prefix tuning: trained keys and values before those of the text, in every layer.

    (Li and Liang 2021, arXiv 2101.00190.)

    Attributes:
        tokens: trained keys and values of a layer.
        projection: whether an MLP computes them.
    """

    method: Literal["prefix"] = "prefix"
    tokens: PositiveCount = 20
    projection: bool = False


class PromptSpec(AdapterSpec):
    """Prompt tuning: trained input vectors before the text (Lester et al. 2021, arXiv 2104.08691).

    Attributes:
        tokens: trained vectors.
        init: their initial values: random numbers, or the embeddings of a text.
        init_text: that text, repeated or truncated to the number of tokens.
    """

    method: Literal["prompt"] = "prompt"
    tokens: PositiveCount = 15
    init: Literal["random", "text"] = "random"
    init_text: str = "Finish this clinical note: "


class PTuningSpec(AdapterSpec):
    """P-tuning: input vectors before the text, computed by an encoder.

    (Liu et al. 2021, arXiv 2103.10385.)

    Attributes:
        tokens: trained vectors.
        encoder: a two-layer MLP, as in the reference implementation, or an LSTM.
        hidden: width of the encoder.
        layers: of the LSTM.
        dropout: of the LSTM.
    """

    method: Literal["p-tuning"] = "p-tuning"
    tokens: PositiveCount = 20
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden: PositiveCount = 256
    layers: PositiveCount = 4
    dropout: DropoutProbability = 0.0


# Discriminated, so that an error is about the keys of the method that is named, and no other
AnyAdapterSpec = Annotated[
    LoraSpec | Ia3Spec | AdaptionPromptSpec | PrefixSpec | PromptSpec | PTuningSpec,
    Field(discriminator="method"),
]
