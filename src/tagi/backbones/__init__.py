"""Language models behind one small protocol (`base`); nothing outside knows a family."""
