"""What can go wrong with a server that a test asked for; only `Unavailable` may turn into a skip."""


class StackError(Exception):
    """Root of everything this package raises on purpose."""


class Unavailable(StackError):
    """The machine cannot have this server; the message says what is missing and how to get it."""


class StartFailed(StackError):
    """The server is here and did not come up; the message quotes the end of its log."""


class NotOwned(Unavailable):
    """A fault was asked of a server that somebody else started, so nobody here may harm it."""
