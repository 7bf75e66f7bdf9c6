"""Ollama's API: requests, answers and the lines of a stream, what it says of a model."""
