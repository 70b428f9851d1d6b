"""A full disk, in its own mount namespace."""

FULL = "is full: free some space and run the same command again"
