"""The ports of this service over a library, an outbox or another service; one file for each outside thing."""
