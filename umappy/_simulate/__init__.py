"""The eviction policies once more, in Python, and an idealised pager that runs them over a trace."""
