"""One model under several settings, side by side."""
