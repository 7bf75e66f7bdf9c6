"""The HTTP server: `python -m mistral_portable serve`."""
