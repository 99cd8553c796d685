"""The compiled kernel of corrected cross-entropy, and what serves it."""
