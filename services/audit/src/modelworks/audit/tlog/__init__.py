"""A transparency log, pure: RFC 6962 hashes and proofs, C2SP tiles, signed notes and checkpoints. No I/O, no service.

Read in this order: `hashes` (what is hashed), `tree` (the growing right edge), `tiles` (how it is stored),
`proofs` (what is shown), `note` (who says so).
"""
