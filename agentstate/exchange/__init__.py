"""Conversations as JSON Lines: export, import, and nothing lost in between; states copied from storage to storage.

One line is the file's head (format and version), then for each conversation one line that
says whose it is, one for each entry and one for each message, and at the end one that counts
them all, so that a cut file is noticed::

    {"agentstate":"export","version":1,"at":"2026-01-31T12:00:00.000000+00:00"}
    {"conversation":"c-1","owner":"alice","labels":{},"created_at":…,"updated_at":…,"expires_at":null}
    {"section":"variables","key":"name","json":"Alice"}
    {"log":"history","id":"m-1","json":{"id":"m-1","role":"user","content":"Hi!",…}}
    {"end":true,"conversations":1,"entries":1,"items":1}

What plain JSON can't carry stands as ``tagged`` or ``bytes`` (base64), a counter as ``counter``.

Both ways stream: an export holds a page of messages in memory, an import one conversation. A
conversation is exported as it was at one version, and imported whole or not at all. A file is
checked to its end before the first conversation of it is stored. Its messages keep their ids
and times; positions are counted anew, and a state's own times are those of the import.
"""

from agentstate.exchange.copying import Copied, copy_states
from agentstate.exchange.exporting import Exported, export_contexts
from agentstate.exchange.importing import Imported, import_contexts

__all__ = ["Copied", "Exported", "Imported", "copy_states", "export_contexts", "import_contexts"]
