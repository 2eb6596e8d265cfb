"""How the command lines of the analysis end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the process on a mistake with one line and exit code 1, on Ctrl-C with 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"twmaml: cannot read or write {error.filename}: {error.strerror}")
    except ValueError as error:
        sys.exit(f"twmaml: {error}")
