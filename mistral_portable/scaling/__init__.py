"""Many machines: batches on Ray Data, a service on Ray Serve. Needs the extra `[ray]`, which nothing else
imports."""
