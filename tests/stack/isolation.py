"""A suite of its own on shared servers: indices and objects under names that no other suite of the run uses.

Topics are shared: a suite begins where its groups' offsets stand, as after a restart.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping


def isolated(environment: Mapping[str, str]) -> dict[str, str]:
    """The STORES_* variables with an index prefix and a bucket of their own; secrets of one suite do not meet another's."""
    name = uuid.uuid4().hex[:8]
    return {**environment, "STORES_OPENSEARCH_PREFIX": f"suite-{name}-", "STORES_S3_BUCKET": f"suite-{name}"}
