"""A run folder: what was asked, what was read, what came out; found again by id or name, and compared.

``schema`` says what ``run.json`` holds, ``folder`` writes and reads one run, ``index`` finds runs in a home, ``comparison`` sets two beside each
other, ``storage`` keeps files whole and one process at a time. No clock is read here: times are handed in.
"""

from clinpeft.registry.comparison import Comparison, Difference, compare
from clinpeft.registry.folder import Run, append, fail, identity, likelihoods, open_run, read, record, table, update
from clinpeft.registry.index import Listing, find, list_runs
from clinpeft.registry.schema import Hardware, Hashes, Problem, RunRecord
from clinpeft.registry.storage import replaced, write_atomically

__all__ = [
    "Comparison",
    "Difference",
    "Hardware",
    "Hashes",
    "Listing",
    "Problem",
    "Run",
    "RunRecord",
    "append",
    "compare",
    "fail",
    "find",
    "identity",
    "likelihoods",
    "list_runs",
    "open_run",
    "read",
    "record",
    "replaced",
    "table",
    "update",
    "write_atomically",
]
