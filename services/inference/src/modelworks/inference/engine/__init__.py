"""The engine: sessions, tensors and the scheduler. Pure: it knows no HTTP, no store and no event.

Server and engine exchange only the small frozen messages of `messages.py`.
"""
