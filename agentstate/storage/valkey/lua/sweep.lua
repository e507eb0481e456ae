-- Needs: base tools load records index expiry remove
-- Removes what has expired in one partition, at most ARGV[2] states, entries and items.
-- KEYS[1] is the partition's 'state:' with no address. ARGV: now, limit.
-- Returns the addresses of the states, entries, items, and 1 when more is due.
local limit, skipped = tonumber(ARGV[2]), 0
local scopes, entries, items = {}, 0, 0
local queue = base .. 'expiry'

local function postpone_or_forget(member, expires)
  if expires and tonumber(expires) > now then
    call('ZADD', queue, expires, member)
  else
    call('ZREM', queue, member)
  end
end

local function sweep_entry(m, member, field)
  local raw = call('HGET', key('entries'), '#' .. field)
  local entry = raw and entry_record(raw)
  if not entry or entry.live then return postpone_or_forget(member, entry and tonumber(entry.expires)) end
  call('HDEL', key('entries'), field, '#' .. field)
  call('ZREM', key('keys'), field)
  local head, bytes, origin = match(m.head, '^(%S+ %S+ )(%d+)( .*)$')
  call('HSET', state, 'head', head .. format('%.0f', bytes - entry.size) .. origin)
  call('ZREM', queue, member)
  entries = entries + 1
end

-- An expired item keeps its place, so that positions stay dense, until it is at the head.
local function sweep_item(m, member, name, position, seq)
  local list, record = key('log:' .. name), m['log:' .. name]
  local log = record and log_record(record)
  local raw = log and tonumber(position) >= log.first and tonumber(position) <= log.head
    and call('LINDEX', list, tonumber(position) - log.first)
  local item = raw and item_record(raw)
  if not item or item.seq ~= seq then return call('ZREM', queue, member) end
  call('ZREM', queue, member)
  call('LSET', list, tonumber(position) - log.first, item.head)
  if item.unique then call('HDEL', key('unique:' .. name), item.id) end
  log.size = log.size - item.size
  local first = call('LINDEX', list, 0)
  while first do
    local oldest = item_record(first)
    if oldest.size > 0 or oldest.expires == '-' or tonumber(oldest.expires) > now then break end
    call('LPOP', list)
    log.first = log.first + 1
    first = call('LINDEX', list, 0)
  end
  call('HSET', state, 'log:' .. name,
    format('%s %.0f %.0f %.0f %.0f', log.stamp, log.first, log.head, log.next, log.size))
  items = items + 1
end

while true do
  local member = call('ZRANGEBYSCORE', queue, '-inf', nowtext, 'LIMIT', skipped, 1)[1]
  if not member then return {scopes, entries, items, 0} end
  local what = {}
  for word in string.gmatch(member .. '\0', '(%Z*)%z') do what[#what + 1] = word end
  move_to(what[2])
  local m = load()
  if is_held(m) then
    skipped = skipped + 1
  elseif #scopes + entries + items >= limit then
    return {scopes, entries, items, 1}
  elseif what[1] == 'scope' then
    if m.head and not is_alive(m) then
      removal().bury(m)
      scopes[#scopes + 1] = address
    else
      if not m.head then removal().unlist() end
      postpone_or_forget(member, m.expires)
    end
  elseif not is_alive(m) then
    call('ZREM', queue, member)
  elseif what[1] == 'entry' then
    sweep_entry(m, member, sub(member, 8 + #address))
  else
    sweep_item(m, member, what[3], what[4], what[5])
  end
end
