"""Sessions: one interface over every edge runtime."""

from edgemim.edge.runtime.available import missing
from edgemim.edge.runtime.session import READERS, Session, open_session

__all__ = ["READERS", "Session", "missing", "open_session"]
