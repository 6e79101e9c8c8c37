"""``python -m clinpeft`` and ``accelerate launch -m clinpeft`` are the command ``clinpeft``."""

from clinpeft.cli import main

if __name__ == "__main__":
    main()
