"""The document store: `port` is the contract, `sqlite` the embedded adapter, `opensearch` the real one."""
