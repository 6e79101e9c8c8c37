"""The errors of clinpeft: each states the value, its location, and what to do.

```
ClinpeftError              exit code
├── UsageError                  2   the command or the recipe asks for something that does not exist
│   └── RecipeError             2   a key, a value or a combination in a recipe
├── InputError                  3   a file or folder that cannot be used as it is
│   ├── SourceError             3   notes and tables
│   ├── BaseModelError          3   the folder of a base model
│   └── AdapterError            3   an adapter folder, or an adapter that does not fit its base
├── RefusedError                4   possible but not allowed: a hash that differs, a locked folder
├── TrainingError               1   a run whose numbers mean nothing: NaN, an adapter without effect
├── StorageError                1   nothing more can be written; earlier files are intact
└── InterruptedRunError         5   stopped from outside; the same command resumes the run
```

No message contains text of a note.
"""


class ClinpeftError(Exception):
    """An error that the user can resolve.

    Args:
        message: what is wrong, with the value that shows it.
        location: where: a recipe key, a file and row, a folder.
        hint: what to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, location: str, hint: str) -> None:
        self.message, self.location, self.hint = message, location, hint
        super().__init__(f"{message}\n  where: {location}\n  hint: {hint}")


class UsageError(ClinpeftError):
    """The command or the recipe asks for something that does not exist."""

    exit_code = 2


class RecipeError(UsageError):
    """A key, a value or a combination in a recipe is wrong."""


class InputError(ClinpeftError):
    """A file or folder cannot be used as it is."""

    exit_code = 3


class SourceError(InputError):
    """Notes or tables cannot be read."""


class BaseModelError(InputError):
    """A folder is not a usable base model."""


class AdapterError(InputError):
    """An adapter cannot be read or does not fit its base."""


class RefusedError(ClinpeftError):
    """Something would be possible and is not allowed."""

    exit_code = 4


class TrainingError(ClinpeftError):
    """A run was stopped because its numbers mean nothing."""


class StorageError(ClinpeftError):
    """Nothing more can be written; what was written before is intact."""


class InterruptedRunError(ClinpeftError):
    """A run was stopped from outside; the same command resumes it."""

    exit_code = 5
