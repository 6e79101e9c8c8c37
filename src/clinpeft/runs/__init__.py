"""A run folder: what was asked, what was read, what came out; found again by id or name, and compared.

``schema`` says what ``run.json`` holds, ``folder`` writes and reads one run, ``index`` finds runs in a home, ``comparison`` sets two beside each
other, ``storage`` keeps files whole and one process at a time; ``manifest`` and ``verification`` say whether files are still those of the run,
``release`` what may leave, ``purging`` what can go, ``audit`` who did what. No clock is read here: times are handed in.
"""

from clinpeft.runs.comparison import RunComparison, RunDifference, compare_runs
from clinpeft.runs.store import Run, append_log_event, fail_run, compute_run_id, read_run_likelihoods, open_run_folder, read_run, finish_run, rewind_log, flush_log, read_run_table, update_run_record
from clinpeft.runs.index import RunListing, find_run, list_runs
from clinpeft.runs.manifest import hash_run_files
from clinpeft.runs.release import ReleaseContent, PRIVACY_AUDIT_FILE, RELEASE_SMALLEST_CELL, read_matching_privacy_audit, compute_path_checksum, read_privacy_audit, hash_trained_weights, write_release_folder
from clinpeft.runs.record import Hardware, InputHashes, RunFailure, RunRecord
from clinpeft.core.files import as_disk_full_error, replace_file_atomically, write_file_atomically
from clinpeft.runs.verify import ProvenanceCheck, check_run_files, check_model_files

__all__ = [
    "PRIVACY_AUDIT_FILE",
    "RELEASE_SMALLEST_CELL",
    "ProvenanceCheck",
    "RunComparison",
    "ReleaseContent",
    "RunDifference",
    "Hardware",
    "InputHashes",
    "RunListing",
    "RunFailure",
    "Run",
    "RunRecord",
    "append_log_event",
    "read_matching_privacy_audit",
    "compute_path_checksum",
    "compare_runs",
    "fail_run",
    "check_run_files",
    "hash_run_files",
    "find_run",
    "as_disk_full_error",
    "compute_run_id",
    "read_run_likelihoods",
    "list_runs",
    "open_run_folder",
    "read_privacy_audit",
    "read_run",
    "finish_run",
    "check_model_files",
    "replace_file_atomically",
    "rewind_log",
    "flush_log",
    "read_run_table",
    "update_run_record",
    "hash_trained_weights",
    "write_file_atomically",
    "write_release_folder",
]
