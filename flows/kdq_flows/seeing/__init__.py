"""Looks at a home from outside: its runs, their logs, what runs now, and its store."""
