"""Our methods beside the existing tools: the same model, data and threads; see `python -m benchmarks.peers --help`."""
