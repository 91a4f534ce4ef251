"""`python -m modelworks.optimizer`: the service in a process of its own."""

from modelworks.optimizer.app import main

main()
