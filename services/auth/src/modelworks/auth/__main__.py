"""`python -m modelworks.auth`."""

from modelworks.auth.app import main

main()
