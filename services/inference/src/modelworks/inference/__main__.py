"""`python -m modelworks.inference`."""

from modelworks.inference.app import main

main()
