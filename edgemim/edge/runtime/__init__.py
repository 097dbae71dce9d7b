"""Sessions: one interface over every edge runtime."""

from edgemim.edge.runtime.session import READERS, Session, open_session

__all__ = ["READERS", "Session", "open_session"]
