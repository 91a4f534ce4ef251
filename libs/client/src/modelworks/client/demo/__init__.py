"""The main job as a client does it: publish a real model, have it optimized, deploy, predict, and read the audit.

`modelworks demo` runs it on a suite of its own; the tests run the same walk on
both columns.
"""

from modelworks.client.demo.run import run_demo

__all__ = ["run_demo"]
