"""Where tasks and text come from: one class a source, and the table that opens them."""
