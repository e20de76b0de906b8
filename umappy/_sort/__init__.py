"""The parts of `umappy.sort`: plan, then runs, then merge; each in a module of its own."""
