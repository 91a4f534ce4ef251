"""Ports over outside things."""
