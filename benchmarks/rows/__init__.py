"""The rows of the table of targets, a file a subject: contenders, which run in children, and `measure(bench)`."""
