"""Text to tokens on disk, and tokens to batches: ``encode`` for the windows of a corpus, ``encode_documents`` for notes that are asked a question.

```
layout.py     special tokens around a window     language.py    a corpus -> windows to learn from
storage.py    windows in one mapped file         documents.py   a cohort -> documents to answer from
batches.py    windows -> padded batches          reading.py     what of a long note is read
                                                 headings.py    where its sections begin
```
"""

from clinpeft.tokenization.batches import (
    WindowBatch,
    DocumentBatch,
    shuffle_document_steps,
    gather_windows,
    group_windows,
    select_process_groups,
    shuffle_window_steps,
)
from clinpeft.tokenization.documents import (
    EncodedDocuments,
    group_documents,
    create_document_layout,
    encode_documents,
    open_encoded_documents,
)
from clinpeft.tokenization.special_tokens import (
    IndexArray,
    SpecialTokenLayout,
    Tokenizer,
    create_special_token_layout,
)
from clinpeft.tokenization.storage import is_encoded
from clinpeft.tokenization.windows import EncodedCorpus, encode_corpus, open_encoded_corpus

__all__ = [
    "WindowBatch",
    "DocumentBatch",
    "EncodedDocuments",
    "EncodedCorpus",
    "IndexArray",
    "SpecialTokenLayout",
    "Tokenizer",
    "group_documents",
    "create_document_layout",
    "shuffle_document_steps",
    "encode_corpus",
    "encode_documents",
    "gather_windows",
    "is_encoded",
    "create_special_token_layout",
    "group_windows",
    "open_encoded_documents",
    "open_encoded_corpus",
    "select_process_groups",
    "shuffle_window_steps",
]
