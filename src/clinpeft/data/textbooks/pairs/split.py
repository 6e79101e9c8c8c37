"""Which pairs are learned from and which are asked: whole books or chapters, in an order drawn from the seed."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from clinpeft.core.errors import InputError, RecipeError
from clinpeft.data.textbooks.pairs.kinds import TextPair
from clinpeft.recipe.textbooks import PairSplitSpec

PairGroupKey = tuple[str, ...]


def _group_by_pair(pair: TextPair, pair_index: int) -> PairGroupKey:
    del pair
    return ("pair", str(pair_index))


def _group_by_book(pair: TextPair, pair_index: int) -> PairGroupKey:
    del pair_index
    return ("book", pair.book) if pair.book else ("anchor", pair.anchor.casefold())


def _group_by_chapter(pair: TextPair, pair_index: int) -> PairGroupKey:
    """What stands before the first chapter of a book, or in a book without chapters, is one chapter."""
    return (
        ("chapter", pair.book, pair.chapter or "")
        if pair.book
        else _group_by_book(pair, pair_index)
    )


PAIR_SPLIT_GROUPS: dict[str, Callable[[TextPair, int], PairGroupKey]] = {
    "pair": _group_by_pair,
    "book": _group_by_book,
    "chapter": _group_by_chapter,
}
"""What is held out as a whole; an imported pair that names no book goes with those of the same anchor."""


def assign_pair_splits(pairs: Sequence[TextPair], spec: PairSplitSpec) -> list[str]:
    """The split of every pair.

    The groups are put in an order by a hash of seed and name. Those named in the recipe go where it says; the others are laid end to end, and each
    goes where its middle falls: held out first, then tuning, the rest is training. Shares are of pairs, so large chapters count as much as they hold.

    Raises:
        RecipeError: a name that no book or chapter has.
        InputError: a split that is asked for gets no pair.
    """
    keys = [PAIR_SPLIT_GROUPS[spec.by](pair, at) for at, pair in enumerate(pairs)]
    sizes = Counter(keys)
    named = _assign_named_groups(sizes, spec)
    drawn = sorted(
        (key for key in sizes if key not in named), key=lambda key: _hash_group(key, spec.seed)
    )
    placed = named | _assign_groups(drawn, sizes, _compute_fractions(spec))
    found = [placed[key] for key in keys]
    _check_split_counts(Counter(found), spec, len(sizes))
    return found


def _assign_named_groups(
    sizes: Mapping[PairGroupKey, int], spec: PairSplitSpec
) -> dict[PairGroupKey, str]:
    """The groups that the recipe names, with their splits."""
    asked = dict.fromkeys(spec.tuning_names, "tuning") | dict.fromkeys(
        spec.held_out_names, "held_out"
    )
    titles = {key[-1] for key in sizes if key[0] == spec.by}
    for name in asked:
        if name not in titles or spec.by == "pair":
            near = difflib.get_close_matches(name, titles, n=1)
            hint = (
                f"did you mean {near[0]!r}? " if near else ""
            ) + f"name titles of a {spec.by}; {len(titles)} are there"
            raise RecipeError(
                f"no {spec.by} with pairs is called {name[:80]!r}",
                location="split.held_out_names, split.tuning_names",
                hint=hint,
            )
    return {key: asked[key[-1]] for key in sizes if key[0] == spec.by and key[-1] in asked}


def _compute_fractions(spec: PairSplitSpec) -> dict[str, float]:
    """What is left to be drawn: a split that has names of its own gets nothing more; nothing is held out by chance where names are given."""
    shares = {"held_out": spec.held_out, "tuning": spec.tuning, "train": spec.train}
    if spec.held_out_names:
        shares["held_out"] = 0.0
    if spec.tuning_names:
        shares["tuning"] = 0.0
    total = sum(shares.values()) or 1.0
    return {name: share / total for name, share in shares.items()}


def _hash_group(key: PairGroupKey, seed: int) -> bytes:
    return hashlib.blake2b("\0".join((str(seed), *key)).encode(), digest_size=8).digest()


def _assign_groups(
    keys: Sequence[PairGroupKey], sizes: Mapping[PairGroupKey, int], fractions: Mapping[str, float]
) -> dict[PairGroupKey, str]:
    """Each group where its middle falls; a split that is asked for takes at least the next group, where there are groups enough."""
    total = sum(sizes[key] for key in keys)
    wanted = [name for name, share in fractions.items() if share]
    ends = {
        name: sum(fractions[before] for before in wanted[: at + 1])
        for at, name in enumerate(wanted)
    }
    placed: dict[PairGroupKey, str] = {}
    at, before = 0, 0
    for left, key in zip(range(len(keys), 0, -1), keys, strict=True):
        middle = (before + sizes[key] / 2) / total
        has = wanted[at] in placed.values()
        while (
            at < len(wanted) - 1
            and has
            and (middle > ends[wanted[at]] or left <= len(wanted) - 1 - at)
        ):
            at, has = at + 1, False
        placed[key] = wanted[at]
        before += sizes[key]
    return placed


def _check_split_counts(counts: Mapping[str, int], spec: PairSplitSpec, groups: int) -> None:
    for name in ("train", "tuning", "held_out"):
        if getattr(spec, name) and not counts.get(name):
            unit = f"{spec.by}s" if groups != 1 else spec.by
            message = f"split.{name} = {getattr(spec, name):g} got none of the {sum(counts.values())} pairs, which are of {groups} {unit}"
            raise InputError(
                message,
                location=f"split.{name}",
                hint=f"give more books, set split.{name} = 0, or split by chapter",
            )
