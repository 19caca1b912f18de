"""Results of papers as data: one file a table in `tables/`, what their columns mean in `columns.yaml`."""
