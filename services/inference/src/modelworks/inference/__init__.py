"""Serves models: the standard protocols and a durable queue in front of one scheduler a worker."""
