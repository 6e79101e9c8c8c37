"""Clinical notes -> text to train on: cleaned, without duplicates, split by subject.

```
mimic.py        the layouts of MIMIC-III and MIMIC-IV-Note     files.py    any other layout
clean.py        de-identification policies                     split.py    splits by subject
deduplicate.py  exact and near duplicates (MinHash)            corpus.py   all of it in one pass
canaries.py     invented notes that measure memorization
```

Which source is read by which module is registered in ``clinpeft.data.sources``.
"""

from clinpeft.data.notes.canaries import (
    CANARY_ID_PREFIX,
    Canary,
    build_corpus_table,
    draw_canary_secrets,
    generate_canaries,
    insert_canaries,
)
from clinpeft.data.notes.clean import format_policy_version
from clinpeft.data.notes.corpus import NoteCorpus, build_note_corpus
from clinpeft.data.notes.files import read_column_names

__all__ = [
    "CANARY_ID_PREFIX",
    "Canary",
    "NoteCorpus",
    "build_corpus_table",
    "build_note_corpus",
    "draw_canary_secrets",
    "format_policy_version",
    "generate_canaries",
    "insert_canaries",
    "read_column_names",
]
