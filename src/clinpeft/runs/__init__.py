"""Run folders: recipe, record, tables and log of a run; found by id or name, and compared.

```
record.py      schema of run.json            manifest.py  checksums of a run's files
store.py       writing and reading a run     verify.py    files against their checksums
index.py       the runs of a home            release.py   the folder that may be released
comparison.py  two runs                      purge.py     removal of text and rows of patients
studies.py     grids of runs                 audit_log.py who did what, as a hash chain
searches.py    hyperparameter searches
```

No clock is read here: times are arguments.
"""

from clinpeft.core.files import as_disk_full_error, replace_file_atomically, write_file_atomically
from clinpeft.runs.comparison import RunComparison, RunDifference, compare_runs
from clinpeft.runs.index import RunListing, find_all_runs, find_run
from clinpeft.runs.manifest import hash_run_files
from clinpeft.runs.record import Hardware, InputHashes, RunFailure, RunRecord
from clinpeft.runs.release import (
    PRIVACY_AUDIT_FILE,
    RELEASE_SMALLEST_CELL,
    ReleaseContent,
    compute_path_checksum,
    hash_trained_weights,
    read_matching_privacy_audit,
    read_privacy_audit,
    write_release_folder,
)
from clinpeft.runs.store import (
    Run,
    append_log_event,
    compute_run_id,
    fail_run,
    finish_run,
    flush_log,
    open_run_folder,
    read_run,
    read_run_likelihoods,
    read_run_table,
    rewind_log,
    update_run_record,
)
from clinpeft.runs.verify import ProvenanceCheck, check_model_files, check_run_files

__all__ = [
    "PRIVACY_AUDIT_FILE",
    "RELEASE_SMALLEST_CELL",
    "Hardware",
    "InputHashes",
    "ProvenanceCheck",
    "ReleaseContent",
    "Run",
    "RunComparison",
    "RunDifference",
    "RunFailure",
    "RunListing",
    "RunRecord",
    "append_log_event",
    "as_disk_full_error",
    "check_model_files",
    "check_run_files",
    "compare_runs",
    "compute_path_checksum",
    "compute_run_id",
    "fail_run",
    "find_all_runs",
    "find_run",
    "finish_run",
    "flush_log",
    "hash_run_files",
    "hash_trained_weights",
    "open_run_folder",
    "read_matching_privacy_audit",
    "read_privacy_audit",
    "read_run",
    "read_run_likelihoods",
    "read_run_table",
    "replace_file_atomically",
    "rewind_log",
    "update_run_record",
    "write_file_atomically",
    "write_release_folder",
]
