"""Pictures and charts: arrays in, PNG, JPEG or SVG out."""
