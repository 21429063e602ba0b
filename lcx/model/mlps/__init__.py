"""Channel mixers (feed-forward layers), one file each, found by its name."""
