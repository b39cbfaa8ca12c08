"""Studies of many runs: what runs (studies), where it is kept (store), how it is run (engine), what it says (report)."""
