"""What vectors are asked to do: held-out pairs told from unrelated texts, passages found again, sets searched, the study's protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.baselines import lexical
from clinpeft.core.schemas import JUDGEMENT, PAIR_SCORE, Attrition, RetrievalSet, table
from clinpeft.data.retrieval import beir
from clinpeft.evaluation import embedding
from clinpeft.models import Manner
from clinpeft.recipe import VectorScoringSpec
from clinpeft.workflows.textbooks import STUDY, Material, Shelf

Encode = Callable[[Sequence[str], str], Any]
"""(texts, what stands before each) -> vectors (texts, width), float32."""

FOUND = 100  # passages kept for a query
MINED_FROM = 20
QUERY, DOCUMENT = "query", "document"
LEXICAL: dict[str, Callable[[Sequence[str]], Any]] = {"BM25": lexical.bm25, "TF-IDF": lexical.tfidf}


@dataclass(frozen=True)
class Exam:
    """Held-out pairs of books, and all texts of the books as distractors.

    Attributes:
        name: of the task, as it stands in results.
        texts: all that is searched: every passage and every positive, each text once; columns of ``tables.PASSAGE`` that strata need.
        anchors: the different anchors.
        anchor_of: (pairs,) the anchor of each pair.
        pairs: pairs and the rows of their positives among ``texts``.
        drawn: stratum -> a negative for each pair.
        judgements: which text answers which anchor.
        attrition: pairs for which a stratum had no negative.
    """

    name: str
    texts: pa.Table
    anchors: list[str]
    anchor_of: Any
    pairs: embedding.Pairs
    drawn: Mapping[str, Any]
    judgements: pa.Table
    attrition: Attrition

    @property
    def anchors_ids(self) -> list[str]:
        """Names of the anchors."""
        return [f"a{at}" for at in range(len(self.anchors))]

    @property
    def own_of_anchor(self) -> Any:
        """(anchors,) the text that an anchor is itself, which is not to be found; -1 for none."""
        own = np.full(len(self.anchors), -1, dtype=np.int64)
        assert self.pairs.own is not None
        own[self.anchor_of] = self.pairs.own
        return own

    @property
    def clusters_of_anchor(self) -> list[str | None]:
        """(anchors,) the chapter of each."""
        assert self.pairs.clusters is not None
        clusters: list[str | None] = [None] * len(self.anchors)
        for at, cluster in zip(self.anchor_of.tolist(), self.pairs.clusters, strict=True):
            clusters[at] = clusters[at] or cluster
        return clusters


@dataclass(frozen=True)
class Measured:
    """What one state of a model did: the scores of all pairs, how well every query was answered, and results that are not compared.

    Attributes:
        scores: exam -> ``tables.PAIR_SCORE``.
        queries: search -> ``PER_QUERY``.
        results: of schema ``tables.RESULT``.
    """

    scores: Mapping[str, pa.Table]
    queries: Mapping[str, pa.Table]
    results: pa.Table


@dataclass(frozen=True)
class Asking:
    """All that every state of a model is asked."""

    exams: tuple[Exam, ...]
    shelf: Shelf
    spec: VectorScoringSpec
    seed: int
    cached: dict[str, Any] = field(default_factory=dict)

    def rng(self) -> np.random.Generator:
        """The same resamples for every state."""
        return np.random.default_rng([self.seed, 1])

    @property
    def options(self) -> dict[str, Any]:
        """Of every bootstrap."""
        return {"resamples": self.spec.resamples, "level": self.spec.level}


def asking(shelf: Shelf, spec: VectorScoringSpec, seed: int) -> Asking:
    """Held-out chapters, the other books, and the sets to search."""
    exams = [exam("held-out chapters", shelf.learned, spec, seed)]
    if shelf.other is not None:
        exams.append(exam("other books", shelf.other, spec, seed))
    return Asking(tuple(exams), shelf, spec, seed)


def exam(name: str, material: Material, spec: VectorScoringSpec, seed: int) -> Exam:
    """The held-out pairs of books with their negatives in strata; the mined ones are those that BM25 takes for answers."""
    held = material.pairs.filter(pc.equal(material.pairs["split"], "held_out"))
    if spec.max_pairs and len(held) > spec.max_pairs:
        held = held.take(
            pa.array(np.sort(np.random.default_rng(seed).permutation(len(held))[: spec.max_pairs]))
        )
    texts = _texts(material)
    row_of = {text: row for row, text in enumerate(texts["text"].to_pylist())}
    anchors = list(dict.fromkeys(held["anchor"].to_pylist()))
    at = {text: row for row, text in enumerate(anchors)}
    anchor_of = np.array([at[text] for text in held["anchor"].to_pylist()], dtype=np.int64)
    positives = np.array([row_of[text] for text in held["positive"].to_pylist()], dtype=np.int64)
    own = np.array([row_of.get(text, -1) for text in held["anchor"].to_pylist()], dtype=np.int64)
    places = zip(held["book"].to_pylist(), held["chapter"].to_pylist(), strict=True)
    clusters = [
        f"{book} · {chapter}" if book else None for book, chapter in places
    ]  # of unknown origin: on its own
    pairs = embedding.Pairs(
        held["pair_id"].to_pylist(), positives, own, held["anchor"].to_pylist(), clusters
    )
    attrition, rng = Attrition(f"negatives, {name}"), np.random.default_rng([seed, 3])
    ranking = _ranking(texts, anchors, own, anchor_of)
    drawn = {
        stratum: embedding.negatives(texts, pairs, stratum, rng, attrition, ranking)
        for stratum in embedding.STRATA
    }
    grades = sorted(
        {(f"a{a}", f"t{p}") for a, p in zip(anchor_of.tolist(), positives.tolist(), strict=True)}
    )
    judged = {
        "query_id": [a for a, _ in grades],
        "passage_id": [p for _, p in grades],
        "grade": [1] * len(grades),
    }
    return Exam(name, texts, anchors, anchor_of, pairs, drawn, table(JUDGEMENT, judged), attrition)


def _texts(material: Material) -> pa.Table:
    """Every passage and every positive, each text once: where it stands in which section is that of its first appearance.

    A positive that was imported without its place is a book and a section of its own.
    """
    columns = ["book", "chapter", "section", "text"]
    positives = material.pairs.select(["book", "chapter", "section", "positive"]).rename_columns(
        columns
    )
    both = pa.concat_tables(
        [positives, material.passages.select(columns)], promote_options="permissive"
    )
    first: dict[str, int] = {}
    for row, text in enumerate(both["text"].to_pylist()):
        first.setdefault(text, row)
    once = both.take(pa.array(sorted(first.values())))
    for name in ("book", "section"):
        alone = pa.array([f"unknown {row}" for row in range(len(once))], once[name].type)
        once = once.set_column(
            once.schema.get_field_index(name), name, pc.coalesce(once[name], alone)
        )
    return once


def _ranking(texts: pa.Table, anchors: list[str], own: Any, anchor_of: Any) -> Any:
    """What BM25 finds for each pair's anchor, best first."""
    words = lexical.bm25(texts["text"].to_pylist())
    names = [f"t{row}" for row in range(len(texts))]
    rows, _ = embedding.best(words.scores(anchors), names, MINED_FROM)
    found = rows[anchor_of].copy()
    found[found == own[:, None]] = -1
    return found


def measured(asked: Asking, encode: Encode, embedding_config: Manner, state: str) -> Measured:
    """Everything that is asked, of one state of a model."""
    scores, queries, results = {}, {}, []
    for one in asked.exams:
        anchors, texts = (
            encode(one.anchors, embedding_config.query_prompt),
            encode(one.texts["text"].to_pylist(), embedding_config.document_prompt),
        )
        table_of_scores, found = _examined(one, anchors, texts, state)
        scores[one.name], queries[one.name] = (
            table_of_scores,
            embedding.per_query(found, one.judgements),
        )
        results += [
            embedding.separation(
                table_of_scores, state, rng=asked.rng(), task=one.name, **asked.options
            ),
            embedding.retrieval(
                found, one.judgements, state, rng=asked.rng(), task=one.name, **asked.options
            ),
            _geometry(asked, one, anchors, texts, state),
        ]
    for name, found_set in {**asked.shelf.search, **asked.shelf.general}.items():
        found = _found(found_set, encode, embedding_config)
        queries[name] = embedding.per_query(found, found_set.judgements)
        results.append(
            embedding.retrieval(
                found, found_set.judgements, state, rng=asked.rng(), task=name, **asked.options
            )
        )
    if asked.shelf.study:
        scores["study"] = _study(asked, encode, embedding_config)
        results.append(_by_the_study(asked, scores["study"], state))
    return Measured(scores, queries, pa.concat_tables(results))


def _examined(one: Exam, anchors: Any, texts: Any, state: str) -> tuple[pa.Table, pa.Table]:
    """Scores of pairs and negatives, and the texts found for each anchor."""
    names = [f"t{row}" for row in range(len(texts))]
    queries, passages = (
        embedding.unit(anchors, one.anchors_ids, state),
        embedding.unit(texts, names, state),
    )
    score = embedding.cosine_score(queries[one.anchor_of], passages)
    scores = embedding.pair_scores(score, one.pairs, one.drawn)
    rows, found = embedding.ranked(
        anchors, texts, FOUND, query_ids=one.anchors_ids, passage_ids=names, own=one.own_of_anchor
    )
    return scores, embedding.retrieved(rows, found, one.anchors_ids, names, one.clusters_of_anchor)


def _geometry(asked: Asking, one: Exam, anchors: Any, texts: Any, state: str) -> pa.Table:
    """Of the positives of the first pair of every anchor."""
    first = np.unique(one.anchor_of, return_index=True)[1]
    ids, clusters = one.anchors_ids, one.clusters_of_anchor
    return embedding.geometry(
        anchors,
        texts[one.pairs.positives[first]],
        ids,
        clusters,
        state,
        rng=asked.rng(),
        task=one.name,
        **asked.options,
    )


def searched(
    name: str,
    asked: RetrievalSet,
    states: Mapping[str, Encode],
    embedding_config: Manner,
    spec: VectorScoringSpec,
    seed: int,
) -> pa.Table:
    """How well a set is searched in each state of a model, by words alone, and the last state less the first.

    Args:
        name: of the set, as it stands in the results.
        asked: the set.
        states: name -> texts to vectors.
        embedding_config: how a text becomes a vector.
        spec: resamples and level of the intervals.
        seed: of the resamples, the same for every state.

    Returns:
        Of schema ``tables.RESULT``.
    """
    options: dict[str, Any] = {"task": name, "resamples": spec.resamples, "level": spec.level}
    found = {state: _found(asked, encode, embedding_config) for state, encode in states.items()}
    found |= {state: _found_by_words(asked, made) for state, made in LEXICAL.items()}
    rows = [
        embedding.retrieval(
            one, asked.judgements, state, rng=np.random.default_rng([seed, 1]), **options
        )
        for state, one in found.items()
    ]
    first, *_, last = states
    queries = [embedding.per_query(found[state], asked.judgements) for state in (first, last)]
    rows.append(
        embedding.retrieval_difference(
            queries[0], queries[1], (first, last), rng=np.random.default_rng([seed, 1]), **options
        )
    )
    return pa.concat_tables(rows)


def _found(found: RetrievalSet, encode: Encode, embedding_config: Manner) -> pa.Table:
    """The best passages of a set for each of its queries."""
    queries, passages = found.queries, found.passages
    ids, names = queries["query_id"].to_pylist(), passages["passage_id"].to_pylist()
    rows, scores = embedding.ranked(
        encode(queries["text"].to_pylist(), embedding_config.query_prompt),
        encode(beir.joined(passages), embedding_config.document_prompt),
        FOUND,
        query_ids=ids,
        passage_ids=names,
    )
    return embedding.retrieved(rows, scores, ids, names, queries["cluster"].to_pylist())


def _found_by_words(asked: RetrievalSet, made: Callable[[Sequence[str]], Any]) -> pa.Table:
    """The same by words alone."""
    ids, names = asked.queries["query_id"].to_pylist(), asked.passages["passage_id"].to_pylist()
    rows, found = embedding.best(
        made(beir.joined(asked.passages)).scores(asked.queries["text"].to_pylist()), names, FOUND
    )
    return embedding.retrieved(rows, found, ids, names, asked.queries["cluster"].to_pylist())


def _study(asked: Asking, encode: Encode, embedding_config: Manner) -> pa.Table:
    """The pairs of the protocol of arXiv 2511.19739 with their cosines; the similar ones are the related."""
    parts = []
    for kind, pairs in asked.shelf.study.items():
        ids = pairs["pair_id"].to_pylist()
        sides = [
            embedding.unit(
                encode(pairs[side].to_pylist(), embedding_config.query_prompt), ids, kind
            )
            for side in ("anchor", "positive")
        ]
        columns = {
            "pair_id": ids,
            "stratum": [kind] * len(ids),
            "related": [kind == STUDY[0]] * len(ids),
            "score": embedding.cosines(*sides),
        }
        parts.append(table(PAIR_SCORE, columns))
    return pa.concat_tables(parts)


def _by_the_study(asked: Asking, scores: pa.Table, state: str) -> pa.Table:
    """Its numbers, with intervals over pairs."""
    of = {
        kind: scores.filter(pc.equal(scores["stratum"], kind))["score"].to_numpy() for kind in STUDY
    }
    return embedding.study(
        of["similar"], of["different"], of["negation"], state, rng=asked.rng(), **asked.options
    )


def lexical_controls(asked: Asking) -> pa.Table:
    """BM25 and TF-IDF on the same pairs and searches, which no vector should lose to."""
    results = []
    for state, made in LEXICAL.items():
        for one in asked.exams:
            words = made(one.texts["text"].to_pylist())
            names = [f"t{row}" for row in range(len(one.texts))]
            scores = embedding.pair_scores(
                words.score([one.anchors[at] for at in one.anchor_of]), one.pairs, one.drawn
            )
            rows, found = embedding.best(words.scores(one.anchors), names, FOUND, one.own_of_anchor)
            retrieved = embedding.retrieved(
                rows, found, one.anchors_ids, names, one.clusters_of_anchor
            )
            results += [
                embedding.separation(
                    scores, state, rng=asked.rng(), task=one.name, **asked.options
                ),
                embedding.retrieval(
                    retrieved,
                    one.judgements,
                    state,
                    rng=asked.rng(),
                    task=one.name,
                    **asked.options,
                ),
            ]
        for name, found_set in {**asked.shelf.search, **asked.shelf.general}.items():
            retrieved = _found_by_words(found_set, made)
            results.append(
                embedding.retrieval(
                    retrieved,
                    found_set.judgements,
                    state,
                    rng=asked.rng(),
                    task=name,
                    **asked.options,
                )
            )
    return pa.concat_tables(results)


def differences(
    asked: Asking, before: Measured, after: Measured, names: tuple[str, str]
) -> pa.Table:
    """After less before, on the same pairs and queries, with paired intervals."""
    rows = [
        embedding.separation_difference(
            scores, after.scores[name], names, rng=asked.rng(), task=name, **asked.options
        )
        for name, scores in before.scores.items()
    ]
    rows += [
        embedding.retrieval_difference(
            queries, after.queries[name], names, rng=asked.rng(), task=name, **asked.options
        )
        for name, queries in before.queries.items()
    ]
    return pa.concat_tables(rows)
