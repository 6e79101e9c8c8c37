"""A run folder: what was asked, what was read, what came out; found again by id or name, and compared.

``schema`` says what ``run.json`` holds, ``folder`` writes and reads one run, ``index`` finds runs in a home, ``comparison`` sets two beside each
other, ``storage`` keeps files whole and one process at a time; ``manifest`` and ``verification`` say whether files are still those of the run,
``release`` what may leave, ``purging`` what can go, ``audit`` who did what. No clock is read here: times are handed in.
"""

from clinpeft.runs.comparison import Comparison, Difference, compare
from clinpeft.runs.store import Run, append, fail, identity, likelihoods, open_run, read, record, rewind, settle, table, update
from clinpeft.runs.index import Listing, find, list_runs
from clinpeft.runs.manifest import files_of
from clinpeft.runs.release import Content, PRIVACY, SMALLEST_CELL, audit_for_release, checksum, privacy_of, weights_of, write_release
from clinpeft.runs.record import Hardware, Hashes, Problem, RunRecord
from clinpeft.core.files import full_disk, replaced, write_atomically
from clinpeft.runs.verify import Check, file_checks, refuse_changed

__all__ = [
    "PRIVACY",
    "SMALLEST_CELL",
    "Check",
    "Comparison",
    "Content",
    "Difference",
    "Hardware",
    "Hashes",
    "Listing",
    "Problem",
    "Run",
    "RunRecord",
    "append",
    "audit_for_release",
    "checksum",
    "compare",
    "fail",
    "file_checks",
    "files_of",
    "find",
    "full_disk",
    "identity",
    "likelihoods",
    "list_runs",
    "open_run",
    "privacy_of",
    "read",
    "record",
    "refuse_changed",
    "replaced",
    "rewind",
    "settle",
    "table",
    "update",
    "weights_of",
    "write_atomically",
    "write_release",
]
