"""A disk that is full, in a mount namespace of its own."""

FULL = "is full: free some space and run the same command again"
