"""The built-in models on what they have never seen: both demonstrations of the command line."""
