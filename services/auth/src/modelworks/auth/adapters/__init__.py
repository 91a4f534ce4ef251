"""Ports of auth over the stores, Authlib and the bus."""
