"""Configs of language models."""
