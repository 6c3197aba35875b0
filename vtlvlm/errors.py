"""The two kinds of mistake that users can mend: each is one line that names the culprit and the remedy."""


class UsageError(ValueError):
    """A setting or command that cannot work as given. The command line shows it and exits with 2."""


class DataError(ValueError):
    """An input that cannot be used as it is. The command line shows it and exits with 1."""
