"""Audit's ports over the suite's stores."""
