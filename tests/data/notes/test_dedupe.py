from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from clinpeft.data.formats.working_folder import create_working_database
from clinpeft.data.notes import deduplicate
from clinpeft.data.notes.deduplicate import (
    MinHashBands,
    compute_band_keys,
    choose_minhash_bands,
    compute_minhash_signatures,
    estimate_jaccard_similarity,
    truncate_signatures,
    normalize_words,
)
from clinpeft.recipe import CorpusSpec


def shingles(text: str) -> set[tuple[str, ...]]:
    """The sets that MinHash estimates, made the slow way."""
    said = text.split()
    return {tuple(said[at : at + 5]) for at in range(max(1, len(said) - 4))}


def jaccard(left: str, right: str) -> float:
    return len(shingles(left) & shingles(right)) / len(shingles(left) | shingles(right))


def estimated(left: Sequence[str], right: Sequence[str]) -> NDArray[np.float64]:
    return estimate_jaccard_similarity(
        truncate_signatures(compute_minhash_signatures(left)),
        truncate_signatures(compute_minhash_signatures(right)),
    )


def note(rng: np.random.Generator, length: int = 300) -> list[str]:
    return [f"w{at}" for at in rng.integers(0, 5000, length)]


def changed(said: list[str], start: int, many: int, tag: str) -> list[str]:
    """A copy in which ``many`` words in a row are others: many + 4 of the 5-grams are gone."""
    return [*said[:start], *(f"{tag}{at}" for at in range(many)), *said[start + many :]]


def pairs(rng: np.random.Generator, many: int, words_changed: int) -> tuple[list[str], list[str]]:
    originals = [note(rng) for _ in range(many)]
    copies = [
        changed(original, 100, words_changed, f"x{at}_") for at, original in enumerate(originals)
    ]
    return [" ".join(said) for said in originals], [" ".join(said) for said in copies]


def dropped(
    texts: Sequence[str], folder: Path, kind: str = "near", threshold: float = 0.8
) -> dict[str, list[int]]:
    """The rows each step drops."""
    out, gone = {}, np.zeros(len(texts), np.bool_)
    for step in deduplicate.DEDUPLICATION_STEPS[kind]:
        with step.open_writer(folder, threshold) as remember:
            remember([normalize_words(text) for text in texts])
        connection = create_working_database(folder, 256)
        found = step.find_duplicates(connection, folder, gone, threshold)
        connection.close()
        gone |= found
        out[step.name] = np.flatnonzero(found).tolist()
    return out


def test_jaccard_by_hand() -> None:
    # {abcde, bcdef} and {abcde, bcdeg}: one of three shared
    assert jaccard("a b c d e f", "a b c d e g") == pytest.approx(1 / 3)
    rng = np.random.default_rng(0)
    named = [[f"{name}{at}" for name in "abcdefg"] for at in rng.permutation(500)]
    left, right = (
        [" ".join(said[:6]) for said in named],
        [" ".join([*said[:5], said[6]]) for said in named],
    )
    standard_error = np.sqrt(1 / 3 * 2 / 3 / deduplicate.MINHASH_PERMUTATIONS / 500)
    assert estimated(left, right).mean() == pytest.approx(1 / 3, abs=4 * standard_error)


@pytest.mark.parametrize("words_changed", [5, 20, 60, 130])
def test_the_estimate_is_unbiased_and_scatters_as_the_theory_says(words_changed: int) -> None:
    left, right = pairs(np.random.default_rng(words_changed), 300, words_changed)
    exact = np.array([jaccard(*pair) for pair in zip(left, right, strict=True)])
    z = (estimated(left, right) - exact) / np.sqrt(
        exact * (1 - exact) / deduplicate.MINHASH_PERMUTATIONS
    )
    assert abs(z.mean()) < 4 / np.sqrt(300)
    assert 0.75 < z.std() < 1.25
    assert np.abs(z).max() < 4.5


def test_notes_with_nothing_in_common_are_not_similar() -> None:
    rng = np.random.default_rng(1)
    left, right = ([" ".join(note(rng)) for _ in range(200)] for _ in range(2))
    assert estimated(left, right).mean() < 0.005
    assert estimated(left, right).max() < 0.05


def test_the_same_note_has_the_same_signature_whatever_stands_beside_it() -> None:
    rng = np.random.default_rng(2)
    texts = [" ".join(note(rng, length)) for length in (300, 1, 4, 5, 6, 40)]
    alone = np.concatenate([compute_minhash_signatures([text]) for text in texts])
    assert np.array_equal(compute_minhash_signatures(texts), alone)


def test_a_signature_never_changes_between_versions() -> None:
    assert compute_minhash_signatures(["chest pain and short of breath"])[0, :3].tolist() == [
        2483868157,
        3233173427,
        1715261911,
    ]


def test_a_note_shorter_than_five_words_is_near_only_what_is_equal() -> None:
    near = estimated(
        ["no acute process", "no acute process", "fever"],
        ["no acute process", "no acute change", "cough"],
    )
    assert near[0] == 1
    assert near[1:].max() < 0.05


def test_repeating_a_passage_does_not_change_the_set_of_its_shingles() -> None:
    said = note(np.random.default_rng(3), 50)
    once, twice = " ".join(said * 2), " ".join(said * 3)
    assert shingles(once) == shingles(twice)
    assert estimated([once], [twice])[0] == 1


def test_the_s_curve_by_hand() -> None:
    assert MinHashBands(2, 2).candidate_probability(0.5) == 1 - (1 - 0.25) ** 2 == 0.4375
    assert MinHashBands(1, 128).candidate_probability(1.0) == 1


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_the_bands_fit_the_threshold(threshold: float) -> None:
    cut = choose_minhash_bands(threshold)
    assert cut.band_count * cut.rows_per_band <= deduplicate.MINHASH_PERMUTATIONS
    assert cut.candidate_probability(threshold) >= 0.95
    assert (
        cut.rows_per_band == deduplicate.MINHASH_PERMUTATIONS
        or MinHashBands(
            deduplicate.MINHASH_PERMUTATIONS // (cut.rows_per_band + 1), cut.rows_per_band + 1
        ).candidate_probability(threshold)
        < 0.95
    )


def test_the_cut_at_the_default_threshold_is_the_documented_one() -> None:
    assert choose_minhash_bands(0.8) == MinHashBands(band_count=18, rows_per_band=7)
    assert [
        round(choose_minhash_bands(0.8).candidate_probability(at), 4) for at in (0.8, 0.5, 0.2)
    ] == [
        0.9855,
        0.1317,
        0.0002,
    ]


@pytest.mark.parametrize("words_changed", [20, 45, 80])
def test_pairs_become_candidates_as_often_as_the_s_curve_says(words_changed: int) -> None:
    cut, many = choose_minhash_bands(0.8), 600
    left, right = pairs(np.random.default_rng(words_changed), many, words_changed)
    expected = np.mean(
        [cut.candidate_probability(jaccard(*pair)) for pair in zip(left, right, strict=True)]
    )
    share = (
        (
            compute_band_keys(compute_minhash_signatures(left), cut)
            == compute_band_keys(compute_minhash_signatures(right), cut)
        )
        .any(axis=1)
        .mean()
    )
    assert share == pytest.approx(
        expected, abs=4 * np.sqrt(expected * (1 - expected) / many) + 0.002
    )


def test_no_two_bands_share_a_key() -> None:
    keys = compute_band_keys(
        np.full((1, deduplicate.MINHASH_PERMUTATIONS), 7, np.uint32), choose_minhash_bands(0.8)
    )
    assert len(set(keys[0].tolist())) == 18


def test_case_white_space_and_composition_do_not_make_another_note(tmp_path: Path) -> None:
    texts = [
        "Caf\u00e9 au lait spots",
        "CAFE\u0301  au\nlait\u00a0spots ",
        "Caf\u00e9 au lait spot",
        "Stra\u00dfe",
        "STRASSE",
    ]
    assert dropped(texts, tmp_path, "exact") == {"exact": [1, 4]}


def test_the_first_read_of_equal_notes_is_kept(tmp_path: Path) -> None:
    assert dropped(["b", "a", "b", "a", "b", "c"], tmp_path, "exact") == {"exact": [2, 3, 4]}


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    originals = [note(rng) for _ in range(300)]
    near = [
        changed(said, 50, 8, f"near{at}_") for at, said in enumerate(originals[:100])
    ]  # 284 of 308: 0.92
    far = [
        changed(said, 50, 100, f"far{at}_") for at, said in enumerate(originals[100:200])
    ]  # 192 of 400: 0.48
    texts = [" ".join(said) for said in [*originals, *near, *far]]
    found = dropped(texts, tmp_path)
    assert found["exact"] == []
    assert set(found["near"]) <= set(range(300, 400))
    assert len(found["near"]) >= 99


def test_no_kept_note_is_near_another_and_each_dropped_one_is_near_a_kept_one(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(5)
    texts = []
    for family in range(20):
        said = note(rng)
        for step in range(10):
            said = changed(said, int(rng.integers(0, 280)), 8, f"f{family}s{step}_")
            texts.append(" ".join(said))
    gone = set(dropped(texts, tmp_path)["near"])
    sketch = truncate_signatures(compute_minhash_signatures(texts))
    stays = [at for at in range(len(texts)) if at not in gone]
    assert 20 < len(stays) < 150
    for at in gone:
        earlier = [other for other in stays if other < at]
        assert (
            estimate_jaccard_similarity(sketch[earlier], sketch[[at] * len(earlier)]).max() >= 0.8
        )
    missed = [
        at
        for at in stays[1:]
        if (
            estimate_jaccard_similarity(
                sketch[[s for s in stays if s < at]], sketch[[at] * sum(s < at for s in stays)]
            )
            >= 0.8
        ).any()
    ]
    assert len(missed) <= 0.05 * len(stays)


def test_a_chain_of_copied_notes_is_thinned_and_not_reduced_to_its_first(tmp_path: Path) -> None:
    said, chain = note(np.random.default_rng(6)), []
    for day in range(6):
        chain.append(" ".join(said))
        said = changed(
            said, 20 + 45 * day, 16, f"day{day}_"
        )  # next day 276 of 316: 0.87; the day after 256 of 336: 0.76
    assert [round(jaccard(chain[0], other), 2) for other in chain[1:3]] == [0.87, 0.76]
    assert dropped(chain, tmp_path)["near"] == [1, 3, 5]


def test_a_bucket_of_thousands_costs_a_few_comparisons_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = note(np.random.default_rng(7))
    texts = [" ".join(changed(template, 290, 1, f"copy{at}_")) for at in range(3000)]
    compared = []

    def counting(
        left: deduplicate.SketchArray, right: deduplicate.SketchArray
    ) -> NDArray[np.float64]:
        compared.append(len(left))
        return estimate_jaccard_similarity(left, right)

    monkeypatch.setattr(deduplicate, "estimate_jaccard_similarity", counting)
    assert dropped(texts, tmp_path)["near"] == list(range(1, 3000))
    assert sum(compared) < 2 * 3000


def test_at_threshold_one_only_equal_sets_of_shingles_are_near(tmp_path: Path) -> None:
    said = note(np.random.default_rng(8), 50)
    texts = [" ".join(said * 2), " ".join(said * 3), " ".join(changed(said * 2, 3, 1, "other"))]
    assert dropped(texts, tmp_path, threshold=1.0)["near"] == [1]


def test_one_enormous_word_is_one_shingle() -> None:
    signature = compute_minhash_signatures(["x" * 10_000_000, "y"])
    assert signature.shape == (2, deduplicate.MINHASH_PERMUTATIONS)
    assert (signature[0] != signature[1]).all()


def test_every_kind_a_recipe_may_name_is_there() -> None:
    assert set(get_args(CorpusSpec.model_fields["deduplicate"].annotation)) == set(
        deduplicate.DEDUPLICATION_STEPS
    )
