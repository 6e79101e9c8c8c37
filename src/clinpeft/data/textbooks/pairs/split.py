"""Splits pairs into training, tuning and held-out ones by whole books or chapters."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from clinpeft.core.errors import InputError, RecipeError
from clinpeft.data.formats.hints import join_hints, suggest_name
from clinpeft.data.textbooks.pairs.kinds import TextPair
from clinpeft.recipe.textbooks import PairSplitSpec

PairGroupKey = tuple[str, ...]


def group_by_book(pair: TextPair, pair_index: int) -> PairGroupKey:
    """Returns the book of a pair; an imported pair without one is grouped by its anchor."""
    del pair_index
    return ("book", pair.book) if pair.book else ("anchor", pair.anchor.casefold())


def group_by_chapter(pair: TextPair, pair_index: int) -> PairGroupKey:
    """Returns the chapter of a pair.

    What precedes the first chapter of a book, or a book without chapters, is one chapter.
    """
    if not pair.book:
        return group_by_book(pair, pair_index)
    return ("chapter", pair.book, pair.chapter or "")


PAIR_SPLIT_GROUPS: dict[str, Callable[[TextPair, int], PairGroupKey]] = {
    "pair": lambda _, pair_index: ("pair", str(pair_index)),
    "book": group_by_book,
    "chapter": group_by_chapter,
}
"""What ``split.by`` of a recipe may be: (pair, its index) -> the group that is never divided."""


def assign_pair_splits(pairs: Sequence[TextPair], spec: PairSplitSpec) -> list[str]:
    """Assigns each pair a split.

    Groups that the recipe names get the split it names. The others are ordered by a hash of seed
    and name and laid end to end; each gets the split into whose interval its middle falls: held
    out first, then tuning, the rest is training. Fractions are of pairs, so a group counts by its
    size.

    Args:
        pairs: the pairs.
        spec: unit, fractions, names and seed.

    Returns:
        ``train``, ``tuning`` or ``held_out`` for each pair.

    Raises:
        RecipeError: a name that no book or chapter has.
        InputError: a requested split gets no pair.
    """
    keys = [PAIR_SPLIT_GROUPS[spec.by](pair, i) for i, pair in enumerate(pairs)]
    sizes = Counter(keys)
    group_splits = _assign_named_groups(sizes, spec)

    def hash_group(key: PairGroupKey) -> bytes:
        return hashlib.blake2b("\0".join((str(spec.seed), *key)).encode(), digest_size=8).digest()

    remaining = sorted((key for key in sizes if key not in group_splits), key=hash_group)
    group_splits |= _assign_remaining_groups(remaining, sizes, spec)
    splits = [group_splits[key] for key in keys]
    counts = Counter(splits)
    for name in ("train", "tuning", "held_out"):
        if getattr(spec, name) and not counts.get(name):
            unit = f"{spec.by}s" if len(sizes) != 1 else spec.by
            raise InputError(
                f"split.{name} = {getattr(spec, name):g} got none of the {len(pairs)} pairs, "
                f"which are of {len(sizes)} {unit}",
                location=f"split.{name}",
                hint=f"give more books, set split.{name} = 0, or split by chapter",
            )
    return splits


def _assign_named_groups(
    sizes: Mapping[PairGroupKey, int], spec: PairSplitSpec
) -> dict[PairGroupKey, str]:
    """Returns the groups that the recipe names, with their splits."""
    named_splits = {
        **dict.fromkeys(spec.tuning_names, "tuning"),
        **dict.fromkeys(spec.held_out_names, "held_out"),
    }
    # The last part of a key is the title of the book or chapter.
    titles = {key[-1] for key in sizes if key[0] == spec.by}
    for name in named_splits:
        if name not in titles or spec.by == "pair":
            raise RecipeError(
                f"no {spec.by} with pairs is called {name[:80]!r}",
                location="split.held_out_names, split.tuning_names",
                hint=join_hints(
                    suggest_name(name, titles),
                    f"give titles of a {spec.by}; there are {len(titles)}",
                ),
            )
    return {
        key: named_splits[key[-1]] for key in sizes if key[0] == spec.by and key[-1] in named_splits
    }


def _assign_remaining_groups(
    keys: Sequence[PairGroupKey], sizes: Mapping[PairGroupKey, int], spec: PairSplitSpec
) -> dict[PairGroupKey, str]:
    """Assigns each group the split into whose interval its middle falls.

    A requested split gets at least the next group, where there are enough groups.
    """
    # A split that has named groups gets no others.
    fractions = {
        "held_out": 0.0 if spec.held_out_names else spec.held_out,
        "tuning": 0.0 if spec.tuning_names else spec.tuning,
        "train": spec.train,
    }
    fraction_total = sum(fractions.values()) or 1.0
    fractions = {name: fraction / fraction_total for name, fraction in fractions.items()}
    names = [name for name, fraction in fractions.items() if fraction]
    # Upper ends of the intervals: (names,)
    ends = [sum(fractions[name] for name in names[: i + 1]) for i in range(len(names))]
    pair_total = sum(sizes[key] for key in keys)
    splits: dict[PairGroupKey, str] = {}
    current, pairs_before = 0, 0
    for remaining_groups, key in zip(range(len(keys), 0, -1), keys, strict=True):
        middle = (pairs_before + sizes[key] / 2) / pair_total
        is_filled = names[current] in splits.values()
        # Moves on past the interval, or early where the later splits would stay empty.
        while (
            current < len(names) - 1
            and is_filled
            and (middle > ends[current] or remaining_groups <= len(names) - 1 - current)
        ):
            current, is_filled = current + 1, False
        splits[key] = names[current]
        pairs_before += sizes[key]
    return splits
