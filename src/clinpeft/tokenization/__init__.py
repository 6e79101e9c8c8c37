"""Text to tokens on disk, and tokens to batches: ``encode`` for the windows of a corpus, ``encode_documents`` for notes that are asked a question.

```
layout.py     special tokens around a window     language.py    a corpus -> windows to learn from
storage.py    windows in one mapped file         documents.py   a cohort -> documents to answer from
batches.py    windows -> padded batches          reading.py     what of a long note is read
                                                 headings.py    where its sections begin
```
"""

from clinpeft.tokenization.batches import (
    Batch,
    DocumentBatch,
    document_steps,
    gather,
    micro_batches,
    share_of,
    steps,
)
from clinpeft.tokenization.documents import (
    Documents,
    document_batches,
    document_layout,
    encode_documents,
    open_documents,
)
from clinpeft.tokenization.special_tokens import Ints, Layout, Tokenizer, layout
from clinpeft.tokenization.storage import is_encoded
from clinpeft.tokenization.windows import Encodings, encode, open_encodings

__all__ = [
    "Batch",
    "DocumentBatch",
    "Documents",
    "Encodings",
    "Ints",
    "Layout",
    "Tokenizer",
    "document_batches",
    "document_layout",
    "document_steps",
    "encode",
    "encode_documents",
    "gather",
    "is_encoded",
    "layout",
    "micro_batches",
    "open_documents",
    "open_encodings",
    "share_of",
    "steps",
]
