"""How what is wrong with the data is said."""


class DataError(Exception):
    """What is wrong with the data, in at most three lines. It ends a script with `exit_code`."""
    exit_code = 3


def printable(text):
    """A name from a file, or of one, as a terminal may show it."""
    return ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in str(text))


def refuse(path, found, expected, cure):
    raise DataError(f'{printable(path)}: found {found}\n  expected {expected}\n  cure: {cure}')


def one_line(error):
    return ' '.join(str(error).split())[:200]
