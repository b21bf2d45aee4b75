"""A run under way: its journal, what it sends, waits for and repeats."""
