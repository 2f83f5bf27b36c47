"""Pure functions on text, open to every floor."""
