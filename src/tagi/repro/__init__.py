"""The paper's runs, tables and figures."""
