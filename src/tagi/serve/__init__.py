"""Tasks by name, for many callers at once: the adapter store, the registry of names, and the HTTP service."""
