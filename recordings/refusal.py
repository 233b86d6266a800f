"""How what is wrong with the data is said."""
from files import printable


class DataError(Exception):
    """What is wrong with the data, in at most three lines. It ends a script with `exit_code`."""
    exit_code = 3


def refuse(path, found, expected, cure):
    """Raises DataError. What is said may hold names from files: nothing of it moves a cursor."""
    path, found, expected, cure = map(printable, (path, found, expected, cure))
    raise DataError(f'{path}: found {found}\n  expected {expected}\n  cure: {cure}')


def one_line(error):
    return ' '.join(str(error).split())[:200]
