"""Errors that say all in one sentence: what is wrong, where, what to do. The command shows them without a traceback.

Each is also the built-in error that it is a kind of, so that ``except ValueError`` catches what it should.
"""


class UserError(Exception):
    """What a user can mend, said in one sentence."""


class BadValue(UserError, ValueError):
    """A value, a shape, a file's content or a combination of settings that cannot work."""


class BadType(UserError, TypeError):
    """An object or a dtype of the wrong kind."""


class NoSuchFile(UserError, FileNotFoundError):
    """A file or a folder that is not there."""


class NoSuchPackage(UserError, ModuleNotFoundError):
    """An optional package that is not installed."""


class NotReady(UserError, RuntimeError):
    """Something that was asked for before it could be given."""
