"""The event bus: `port` is the contract, `sqlite` the embedded adapter, `kafka` the real one."""
