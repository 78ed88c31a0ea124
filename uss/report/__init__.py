"""One page about a finished run: what it reached, how, and how it looks."""
