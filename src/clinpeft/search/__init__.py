"""A search over keys of a recipe: what is tried next, who works on it, what was found. A trial is a run; the tuning split alone is looked at.

``papers`` holds the papers' spaces, ``space`` a checked one; ``proposals`` says what is tried next, ``storage`` where that is kept and who has what;
``working`` is a worker, ``measured`` what a run is judged by, ``outcome`` what was found.
"""

from clinpeft.search.objective_value import read_objective_value
from clinpeft.search.outcome import add_held_out_results, build_search_record, write_winner_recipe
from clinpeft.search.paper_spaces import PAPER_SEARCH_SPACES
from clinpeft.search.proposals import OPTUNA_SAMPLERS, open_optuna_study
from clinpeft.search.space import SearchSpace, build_search_space
from clinpeft.search.storage import mask_storage_password, open_search_storage, wrap_storage_errors
from clinpeft.search.worker import WorkerConfig, claim_trials, run_search_worker

__all__ = [
    "PAPER_SEARCH_SPACES",
    "OPTUNA_SAMPLERS",
    "WorkerConfig",
    "SearchSpace",
    "build_search_record",
    "read_objective_value",
    "open_search_storage",
    "open_optuna_study",
    "wrap_storage_errors",
    "mask_storage_password",
    "build_search_space",
    "claim_trials",
    "add_held_out_results",
    "run_search_worker",
    "write_winner_recipe",
]
