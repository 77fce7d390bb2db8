"""Markdown for a terminal, line by line, so that a growing answer costs only what changed."""
