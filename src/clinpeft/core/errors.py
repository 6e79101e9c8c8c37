"""The closed family of errors: every one says the value, where it stands, and what to do, and never a word of a note.

```
ClinpeftError                 exit
├── UsageError                  2   the command or the recipe asks for something that is not there
│   └── RecipeError             2   a key, a value or a combination in a recipe
├── InputError                  3   a file or folder that cannot be used as it is
│   ├── SourceError             3   notes and tables
│   ├── BaseModelError          3   the folder of a base model
│   └── AdapterError            3   an adapter folder, or an adapter that does not fit its base
├── RefusedError                4   what could be done and must not be: a hash that differs, a door that is closed
├── TrainingError               1   a run that stopped because its numbers mean nothing: NaN, an adapter that does not move
├── StorageError                1   nothing more can be written; what was written before is intact
└── InterruptedRun              5   stopped from outside; the same command goes on
```
"""


class ClinpeftError(Exception):
    """Something the user can put right.

    Args:
        message: what is wrong, with the value that shows it.
        location: where it stands: a recipe key, a file and row, a folder.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, location: str, hint: str) -> None:
        self.message, self.location, self.hint = message, location, hint
        super().__init__(f"{message}\n  where: {location}\n  hint: {hint}")


class UsageError(ClinpeftError):
    """The command or the recipe asks for something that is not there."""

    exit_code = 2


class RecipeError(UsageError):
    """A key, a value or a combination in a recipe."""


class InputError(ClinpeftError):
    """A file or folder that cannot be used as it is."""

    exit_code = 3


class SourceError(InputError):
    """Notes or tables that cannot be read."""


class BaseModelError(InputError):
    """A folder that is not a usable base model."""


class AdapterError(InputError):
    """An adapter that cannot be read or does not fit its base."""


class RefusedError(ClinpeftError):
    """What could be done and must not be."""

    exit_code = 4


class TrainingError(ClinpeftError):
    """A run whose numbers mean nothing, stopped."""


class StorageError(ClinpeftError):
    """Nothing more can be written; what was written before is intact."""


class InterruptedRunError(ClinpeftError):
    """Stopped from outside; the same command goes on where it stopped."""

    exit_code = 5
