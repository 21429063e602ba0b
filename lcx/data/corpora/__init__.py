"""One corpus per file: `files.py` holds `Files`, a config says `dict(name="files", paths=...)`."""
