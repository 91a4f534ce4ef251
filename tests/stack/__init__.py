"""Starts the real servers (Kafka, OpenSearch, MinIO, Redis) for tests and for people, and leaves nothing behind.

For tests see `plugin`; for people `python -m tests.stack up`. Three ideas carry it: an *endpoint* is where a server
is, in the product's variables; a *server* is an endpoint with faults (kill, pause, restart); a *guardian* process
owns each native server, so that no way of ending a run leaks one.
"""

from tests.stack.errors import NotOwned, StackError, StartFailed, Unavailable
from tests.stack.server import Server
from tests.stack.stack import NAMES, Stack

__all__ = ["NAMES", "NotOwned", "Server", "Stack", "StackError", "StartFailed", "Unavailable"]
