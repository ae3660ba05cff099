"""Tasks in language: questions as text, answers read from text."""
