"""The command `umappy`: a module for each subcommand, and what they share."""
