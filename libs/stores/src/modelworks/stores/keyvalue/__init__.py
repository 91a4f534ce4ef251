"""Short-lived state: `port` is the contract, `embedded` and `redis` are its adapters."""
