"""The setting chosen for you: the search of ``turbovlm tune``."""
