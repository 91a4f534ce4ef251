"""The ports over the stores."""
