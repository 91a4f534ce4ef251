"""`python -m modelworks.edge`."""

from modelworks.edge.app import main

main()
