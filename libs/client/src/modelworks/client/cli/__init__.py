"""The `modelworks` command.

`--json` prints one JSON document on standard output; progress and prose go to
standard error. Exit: 0 done, 1 refused or failed with one clear line, 2 wrong use.
"""

from modelworks.client.cli.main import main

__all__ = ["main"]
