"""Many machines: batches on Ray Data. Needs the extra `[ray]`, which nothing else of the library imports."""
