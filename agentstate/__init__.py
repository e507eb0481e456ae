"""Durable, shared, inspectable state for AI agent handlers."""
