"""`python -m modelworks.registry`."""

from modelworks.registry.app import main

main()
