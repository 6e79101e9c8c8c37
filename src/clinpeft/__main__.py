"""``python -m clinpeft`` and ``torchrun -m clinpeft`` are the command ``clinpeft``."""

from clinpeft.cli import main

if __name__ == "__main__":
    main()
