"""The PostgreSQL backend."""

from agentstate.storage.postgresql.options import PostgresqlOptions
from agentstate.storage.postgresql.storage import PostgresqlStorage

__all__ = ["PostgresqlOptions", "PostgresqlStorage"]
