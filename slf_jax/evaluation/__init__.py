"""Evaluation: sampled faces measured against real ones, and the reports made from it."""
