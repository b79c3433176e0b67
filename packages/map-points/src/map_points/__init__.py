"""map-points: see README.md for what will live here."""
