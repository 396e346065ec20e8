"""The command line: `trimaran serve`, `chat`, `plan`, `doctor` and the single services."""
