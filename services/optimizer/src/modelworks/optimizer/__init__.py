"""The optimizer: builds a smaller or faster variant of a revision, measures it, and says whether it is worth having."""
