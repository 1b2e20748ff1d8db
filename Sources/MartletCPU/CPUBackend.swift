// The CPU backend.
