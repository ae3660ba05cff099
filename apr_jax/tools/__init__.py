"""What measurements and checks have in common; nothing else needs it."""
