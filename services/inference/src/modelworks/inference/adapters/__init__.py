"""Ports over the stores, the registry and the disk; one file for each outside thing."""
