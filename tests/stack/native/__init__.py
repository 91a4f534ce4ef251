"""The four servers as ordinary processes of this machine, on loopback."""
