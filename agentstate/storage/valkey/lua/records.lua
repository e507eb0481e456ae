-- What stands in the records of logs, entries and items.

local function log_record(raw)
  local stamp, first, head, next_seq, size = match(raw, '^(%S+) (%d+) (%d+) (%d+) (%d+)$')
  first, head, next_seq, size = tonumber(first), tonumber(head), tonumber(next_seq), tonumber(size)
  return {stamp = stamp, first = first, head = head, next = next_seq, size = size}
end

-- '<stamp> <bytes> <v or n>[<expires>]'
local function entry_record(raw)
  local size, kind, expires = match(raw, '^%S+ (%d+) ([vn])(%S*)$')
  return {kind = kind, size = tonumber(size), expires = expires, live = expires == '' or tonumber(expires) > now}
end

-- '<seq> <u when unique><% when its id is escaped><expires or -> <id> <value>'
local function item_record(raw)
  local _, stop, seq, unique, expires, id = find(raw, '^(%d+) (u?)%%?(%S+) (%S*) ')
  return {seq = seq, expires = expires, unique = unique == 'u', id = id, head = sub(raw, 1, stop), size = #raw - stop}
end
