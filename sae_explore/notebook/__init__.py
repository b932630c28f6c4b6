"""A visitor's labels, notes and lists of features: in memory, as JSON, on disk."""
