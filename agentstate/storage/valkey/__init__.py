"""The Valkey backend.

What lies where, for those who look with ``valkey-cli`` (``agentstate show`` does it for you).
Every key is ``<key_prefix>{<partition>}<what>:<address>``; ``<partition>`` is the CRC-32 of the
address modulo 256. Values stand as they were given, so plain JSON is readable:

=====================================  ======================================================
``state:conversation:c-1``             hash: version, owner, times, heads of logs, the turn
``entries:conversation:c-1``           hash: ``variables/name`` is the value and
                                       ``#variables/name`` its stamp, size, kind, expiry
``log:history:conversation:c-1``       list of items: ``<seq> - <id> <value>``
``journal:conversation:c-1``           list of commits: stamp, time, what was appended, the record
``keys:``, ``unique:``, ``known:``,    order of the keys, items by unique id, commits known,
``once:``, ``failures:``               idempotency keys, failed turns
``by-id:…``, ``by-time:…``,            of the partition: indexes, what expires when, and
``expiry``, ``feed``                   the commits in their order
=====================================  ======================================================

So, for the conversation ``c-1`` of the default prefix, in partition 110::

    HGET agentstate:{110}entries:conversation:c-1 variables/name
    LRANGE agentstate:{110}log:history:conversation:c-1 -10 -1

Needs Valkey, or Redis 6.2 (for a cluster 7) or later. The user needs the rights on the keys
``~<key_prefix>*`` and the channels ``&<key_prefix>wake:*``.
"""

from agentstate.storage.valkey.options import ValkeyOptions
from agentstate.storage.valkey.storage import ValkeyStorage

__all__ = ["ValkeyOptions", "ValkeyStorage"]
