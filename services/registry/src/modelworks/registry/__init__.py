"""Git for models: content-addressed commits, branches and tags moved by compare-and-set, verified transfers."""
