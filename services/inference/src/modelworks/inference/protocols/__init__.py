"""The wire protocols of other servers, each a shell over the same handlers."""
