"""Tasks that are made up on demand, so that the whole method can be tried on any machine."""
