"""One file a run: its docstring says the command, the cost and the expected score."""
