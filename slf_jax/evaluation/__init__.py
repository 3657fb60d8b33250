"""Measuring faces."""
