"""The MongoDB backend.

What lies where, for those who look with ``mongosh`` (``agentstate show`` does it for you). The names
begin with ``collection_prefix``; ``/`` and ``%`` in ids are written ``%2F`` and ``%25``:

===============  ================================================================================
``transitions``  the truth: per state a chain ``conversation:c-1/0000000000000042`` of commits,
                 drops and changes of its turn. ``pending`` until it is in the others
``states``       entries, one document each: ``section``, ``name``, ``value``, ``version``
``history``      log items, one document each: ``log``, ``seq``, ``position``, ``id``, ``value``
``metadata``     a row per state (owner, labels, times, sizes), idempotency keys, failed turns
``feed``         the commits of each partition in their order
===============  ================================================================================

So, for the conversation ``c-1``::

    db.history.find({scope: "conversation:c-1", log: "history"}).sort({position: -1}).limit(10)
    db.states.find({scope: "conversation:c-1", section: "variables"})
"""

from agentstate.storage.mongodb.options import MongodbOptions
from agentstate.storage.mongodb.storage import MongodbStorage

__all__ = ["MongodbOptions", "MongodbStorage"]
