"""Pictures and charts from arrays, as PNG, JPEG or SVG."""
