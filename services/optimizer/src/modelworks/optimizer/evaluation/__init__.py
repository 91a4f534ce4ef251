"""Measures a variant against its original: size, paired latency, agreement on inputs, and where the time goes.

Runs in the worker process only. Nothing here decides; rules are checked in
`verdict.py` on what this package measured.
"""
