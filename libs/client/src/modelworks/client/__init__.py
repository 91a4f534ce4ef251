"""The Python client: one class whose methods are the suite's HTTP surface, with transfers verified at both ends."""

from modelworks.client.api import OMIT, AsyncModelworks
from modelworks.client.credentials import ClientCredentials, static_token
from modelworks.client.values import Commit, Ref, Revision, SearchPage, TreeEntry

__all__ = [
    "OMIT",
    "AsyncModelworks",
    "ClientCredentials",
    "Commit",
    "Ref",
    "Revision",
    "SearchPage",
    "TreeEntry",
    "static_token",
]
