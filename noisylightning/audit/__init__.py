"""Which training labels are wrong: a table with one row a sample, its files, and its page."""

from noisylightning.audit.table import AuditTable

__all__ = ["AuditTable"]
