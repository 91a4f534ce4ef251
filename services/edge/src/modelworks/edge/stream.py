"""Events of the edge: it consumes none by group; its listeners follow topics through `handlers.Events.follow`."""
