"""Data modules whose labels may be wrong, and the noise that makes them so."""
