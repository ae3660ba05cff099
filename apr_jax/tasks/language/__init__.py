"""Tasks in language: questions as text, answers read out of text."""
