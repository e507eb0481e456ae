-- What stands in the records of logs, entries and items.

local function log_record(raw)
  local first, head, next_seq, size, stamp = match(raw, '^(%d+) (%d+) (%d+) (%d+) (%S+)$')
  return {first = tonumber(first), head = tonumber(head), next = tonumber(next_seq), size = tonumber(size), stamp = stamp}
end

-- '<stamp> <v or n> <bytes>[ <expires>]'
local function entry_record(raw)
  local stamp, kind, size, expires = match(raw, '^(%S+) (%a) (%d+) ?(%S*)$')
  return {stamp = stamp, kind = kind, size = tonumber(size), expires = expires, live = expires == '' or tonumber(expires) > now}
end

-- '<seq> <expires or -> <u or -> <id> <value>'
local function item_record(raw)
  local _, stop, seq, expires, unique, id = find(raw, '^(%d+) (%S+) ([u-]) (%S*) ')
  return {seq = seq, expires = expires, unique = unique == 'u', id = id, head = sub(raw, 1, stop), size = #raw - stop}
end
