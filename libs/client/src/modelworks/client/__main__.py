"""`python -m modelworks.client`: the `modelworks` command."""

from modelworks.client.cli import main

main()
