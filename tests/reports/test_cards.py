"""The card of a model, as the hub reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from clinpeft.reports.cards import EncoderCard, render_encoder_card
from clinpeft.reports.tables import Estimate, ReportColumn, ReportTable

CARD = EncoderCard(
    name="heart: small",
    base_model="intfloat/e5-large-v2",
    license="MIT",
    pooling="mean",
    is_normalized=True,
    dimension=1024,
    max_tokens=512,
    query_prompt="query: ",
    document_prompt="passage: ",
    adapter="LoRA, rank 16, alpha 32, on query and value",
    trained_parameters=1_572_864,
    base_parameters=335_174_458,
    training_data="Two open textbooks (CC BY 4.0), split by chapter.",
    training=(("loss", "InfoNCE, temperature 0.05"), ("seed", "1")),
    training_pairs=12_345,
    results=(
        ReportTable(
            "Separation",
            (ReportColumn("model", is_text=True), ReportColumn("value", is_estimate=True)),
            (("adapted", Estimate(0.41, 0.38, 0.44)),),
        ),
    ),
    run_id="0123abcd",
    version="0.2",
)


def metadata(text: str) -> Any:
    yaml = pytest.importorskip("yaml")
    start, front, body = text.split("---\n", 2)
    assert start == "" and body.startswith("\n# ")
    return yaml.safe_load(front)


def test_the_metadata_is_what_the_hub_reads() -> None:
    front_matter = metadata(render_encoder_card(CARD))
    assert (
        front_matter["base_model"] == "intfloat/e5-large-v2"
        and front_matter["license"] == "mit"
        and front_matter["language"] == "en"
    )
    assert (
        front_matter["library_name"] == "sentence-transformers"
        and front_matter["pipeline_tag"] == "sentence-similarity"
    )
    assert {"sentence-transformers", "feature-extraction", "lora"} <= set(
        front_matter["tags"]
    ) and front_matter["base_model_relation"] == "finetune"


def test_an_adapter_alone_is_one_of_peft_and_says_what_it_needs() -> None:
    text = render_encoder_card(replace(CARD, is_merged=False))
    front_matter = metadata(text)
    assert (
        front_matter["library_name"] == "peft" and front_matter["base_model_relation"] == "adapter"
    )
    assert "needs intfloat/e5-large-v2 at hand" in text


@pytest.mark.parametrize(
    ("licence", "hub_license", "name"),
    [
        ("Apache-2.0", "apache-2.0", None),
        ("Gemma Terms of Use", "gemma", None),
        ("public domain", "other", "public-domain"),
    ],
)
def test_licences_carry_the_hub_s_names(licence: str, hub_license: str, name: str | None) -> None:
    front_matter = metadata(render_encoder_card(replace(CARD, license=licence)))
    assert (front_matter["license"], front_matter.get("license_name")) == (hub_license, name)


def test_the_text_says_how_it_was_trained_how_it_is_read_and_what_it_scores() -> None:
    text = render_encoder_card(CARD)
    assert "# heart: small\n" in text and 'SentenceTransformer("heart: small")' in text
    assert "adapted with LoRA, rank 16, alpha 32, on query and value" in text
    assert (
        "- trained parameters: 1,572,864, .47% of the base" in text
        and "- pairs: 12,345" in text
        and "- loss: InfoNCE" in text
    )
    assert (
        "- dimension: 1,024" in text
        and "- longest text: 512 tokens" in text
        and '`"query: "`' in text
    )
    assert "### Separation" in text and "0.410" in text and "0.380" in text
    assert text.endswith("Made with clinpeft 0.2, run `0123abcd`.\n") and "## Limits" in text


def test_what_is_not_known_is_not_said() -> None:
    bare = EncoderCard("heart", "BAAI/bge-m3", "MIT", "cls", True, 1024, 8192)
    text = render_encoder_card(bare)
    metadata(text)
    assert "fine-tuned as a whole" in text
    for absent in ("None", "## Training", "## Results", "Prompts", "run `", "lora", "\n\n\n"):
        assert absent not in text
