"""Anthropic's API: requests, answers, the events of a stream, errors."""
