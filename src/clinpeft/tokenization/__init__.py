"""Text to tokens on disk, and tokens to batches.

``encode_corpus`` encodes a corpus for language modeling, ``encode_documents`` a cohort for
classification.

```
special_tokens.py  special tokens around a window   windows.py     corpus -> training windows
storage.py         windows in one mapped file       documents.py   cohort -> documents to classify
batches.py         windows -> padded batches        truncation.py  tokens of a note that are read
                                                    headings.py    where sections of a note begin
```
"""

from clinpeft.tokenization.batches import (
    DocumentBatch,
    WindowBatch,
    gather_windows,
    group_windows,
    select_process_groups,
    shuffle_document_steps,
    shuffle_window_steps,
)
from clinpeft.tokenization.documents import (
    EncodedDocuments,
    create_document_layout,
    encode_documents,
    group_documents,
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
    "DocumentBatch",
    "EncodedCorpus",
    "EncodedDocuments",
    "IndexArray",
    "SpecialTokenLayout",
    "Tokenizer",
    "WindowBatch",
    "create_document_layout",
    "create_special_token_layout",
    "encode_corpus",
    "encode_documents",
    "gather_windows",
    "group_documents",
    "group_windows",
    "is_encoded",
    "open_encoded_corpus",
    "open_encoded_documents",
    "select_process_groups",
    "shuffle_document_steps",
    "shuffle_window_steps",
]
