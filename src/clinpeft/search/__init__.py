"""Hyperparameter search over keys of a recipe; a trial is a run, judged on its tuning split only.

```
space.py            keys and their values       worker.py           a process that runs trials
paper_spaces.py     the papers' spaces          objective_value.py  the metric of a run
proposals.py        optuna's samplers           outcome.py          winner and importance
storage.py          trials and their locks
```
"""

from clinpeft.search.objective_value import read_objective_value
from clinpeft.search.outcome import add_held_out_results, build_search_record, write_winner_recipe
from clinpeft.search.paper_spaces import PAPER_SEARCH_SPACES
from clinpeft.search.proposals import OPTUNA_SAMPLERS, open_optuna_study
from clinpeft.search.space import SearchSpace, build_search_space
from clinpeft.search.storage import mask_storage_password, open_search_storage, wrap_storage_errors
from clinpeft.search.worker import WorkerConfig, claim_trials, run_search_worker

__all__ = [
    "OPTUNA_SAMPLERS",
    "PAPER_SEARCH_SPACES",
    "SearchSpace",
    "WorkerConfig",
    "add_held_out_results",
    "build_search_record",
    "build_search_space",
    "claim_trials",
    "mask_storage_password",
    "open_optuna_study",
    "open_search_storage",
    "read_objective_value",
    "run_search_worker",
    "wrap_storage_errors",
    "write_winner_recipe",
]
