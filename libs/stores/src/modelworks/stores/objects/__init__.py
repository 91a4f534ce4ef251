"""The object store: `port` is the contract, `folder` the embedded adapter, `s3` the real one."""
