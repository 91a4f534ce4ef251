"""The only public door: checks tokens, limits rate and size, routes, takes events in and streams results out."""
