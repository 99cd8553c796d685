"""Which training labels are wrong: a table with one row a sample, its files, and its page."""

from noisylightning.audit.files import write_audit, write_marks, write_table
from noisylightning.audit.of_predictions import audit_predictions
from noisylightning.audit.page import Thumbnails, write_page
from noisylightning.audit.report import print_audit
from noisylightning.audit.table import AuditTable
from noisylightning.audit.tally import Audit
from noisylightning.audit.thumbnails import thumbnails_of
from noisylightning.audit.with_trainer import audit_with_trainer

__all__ = [
    "Audit",
    "AuditTable",
    "Thumbnails",
    "audit_predictions",
    "audit_with_trainer",
    "print_audit",
    "thumbnails_of",
    "write_audit",
    "write_marks",
    "write_page",
    "write_table",
]
