"""Text to tokens on disk, and tokens to batches: ``encode`` for the windows of a corpus, ``encode_documents`` for notes that are asked a question.

```
layout.py     special tokens around a window     language.py    a corpus -> windows to learn from
storage.py    windows in one mapped file         documents.py   a cohort -> documents to answer from
batches.py    windows -> padded batches          reading.py     what of a long note is read
                                                 headings.py    where its sections begin
```
"""

from clinpeft.tokens.batches import Batch, DocumentBatch, document_steps, gather, micro_batches, share_of, steps
from clinpeft.tokens.documents import Documents, document_batches, document_layout, encode_documents, open_documents
from clinpeft.tokens.language import Encodings, encode, open_encodings
from clinpeft.tokens.layout import Ints, Layout, Tokenizer, layout
from clinpeft.tokens.storage import is_encoded

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
