"""What goes into the log, under the names that those who write to it use; the format is `cocoon.transparency`'s."""

from cocoon.transparency import Entry, LeafType, entry_of, receipt_envelope

__all__ = ["Entry", "LeafType", "entry_of", "receipt_envelope"]
