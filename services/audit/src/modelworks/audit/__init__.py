"""The audit service: every event of an audited topic becomes a leaf of a Merkle log and a document that carries its proof."""
