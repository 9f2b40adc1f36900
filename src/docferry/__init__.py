"""docferry carries the semistructured columns of PostgreSQL tables to a document store, event by event, durably."""

__all__ = ["__version__"]

__version__ = "0.1.0"
