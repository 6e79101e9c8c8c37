"""clinpeft: clinical notes in, small proven adapters on a frozen language model out, without a network."""

__version__ = "0.6.0"
