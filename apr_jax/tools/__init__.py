"""What experiments and tests have in common; nothing else in the package needs it."""
