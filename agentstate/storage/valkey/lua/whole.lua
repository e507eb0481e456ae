-- A commit of any kind. What `commit.lua` has read and found is at hand.
local m = {
  head = head, turn = record[2], line = line, expires = expires, native = native and record[5], owner = record[7],
  labels = record[8],
}

local entries, old, some = key('entries'), {}, entry_count == 0
for start = 1, entry_count, CHUNK do
  local stop = math.min(start + CHUNK - 1, entry_count)
  local found = alive and call('HMGET', entries, unpack(ARGV, fields + start, fields + stop)) or {}
  for i = start, stop do
    local raw, stamp = found[i - start + 1], '-'
    if raw then
      old[i], some = raw, true
      if entry_record(raw).live then stamp = raw end
    end
    if find(stamp, ARGV[stamps + i], 1, true) ~= 1 then
      return {'conflict', 'entry', match(stamp, '^%S+'), i .. ''}
    end
  end
end
if alive and not some and bytes ~= '0' and call('EXISTS', entries) == 0 then return {'damaged', 'entries'} end

local by_time, rarer, more = base .. 'by-time:kind:' .. tenant .. ':' .. kind, changes(), nil
if find(options, 'x', 1, true) then
  more, taken = rarer.read(taken, log_count)
  local refused = rarer.refusal(more, alive, old, by_time)
  if refused then return refused end
end
more = more or {deletes = {}, increments = {}, logs = {}}
local fresh = more.clear or not alive
if fresh then old, bytes = {}, 0 end

-- The bytes of the entries, what is deleted, and the keys that are new.
local named, gone = {}, {}
local function count(i, size)
  if old[i] then
    bytes = bytes - entry_record(old[i]).size
  elseif size then
    named[#named + 1], named[#named + 2] = 0, sub(ARGV[fields + i], 2)
  end
  bytes = bytes + (size or 0)
end
for _, at in ipairs(more.deletes) do
  if old[at] then
    count(at)
    old[at], gone[#gone + 1] = nil, ARGV[fields + at]
  end
end
for i = 1, put_count do count(i, 0) end
bytes = bytes + ARGV[14]
for _, one in ipairs(more.increments) do count(one.at, one.size) end

local own, logs, appended = find(options, 'o', 1, true), {}, false
for i = 1, log_count do
  local field, stored = ARGV[14 + i], not fresh and record[RECORD_FIELDS + i]
  local first = more.logs[i] and more.logs[i].first or 1
  local log = stored and log_record(stored) or {first = first, head = first - 1, next = first, size = 0}
  log.field, log.list, log.stored, log.count, log.at = field, key(field), stored, tonumber(ARGV[taken + 1]), taken + 2
  if stored and call('LLEN', log.list) ~= log.head - log.first + 1 then return {'damaged', field} end
  if stored and (own or more.logs[i]) then call('HLEN', key('unique:' .. sub(field, 5))) end
  local refused = more.logs[i] and rarer.look_at(log, more.logs[i])
  if refused then return refused end
  taken, appended, logs[i] = taken + 2 + log.count, appended or log.count > 0, log
end

rarer.look_at_indexes(m, more)
local renewed = ttl ~= 'k' and ttl ~= '' and (fresh or find(options, 's', 1, true)) and now + ttl
if own or renewed then call('ZCARD', base .. 'expiry') end
if not fresh and (gone[1] or named[1]) then call('ZCARD', key('keys')) end
local journaled = find(options, 'j', 1, true) and (fresh and 0 or call('LLEN', key('journal')))

-- Now everything is written.
local sums, refused = rarer.add(more.increments, fields)
if refused then return refused end

local set, waiters, woken = {}, waiting(), nil
local function put(field, value)
  local n = #set
  set[n + 1], set[n + 2] = field, value
end
if nonce ~= '' and find(options, 'r', 1, true) then woken = waiters.pass_on(m, waiters.line_of(m), set) end

local function remember(what)
  local generation = {}
  if not since then
    generation = {'since', nowtext}
  elseif aged then
    call('RENAME', known, key('known-before'))
    generation = {'since', nowtext, 'before', '1'}
  end
  call('HSET', known, commit, what, unpack(generation))
end

if more.clear and put_count == 0 and #more.increments == 0 and not appended then
  if head then removal().bury(m) else put('version', version) end
  remember('-')
  many('HSET', state, set)
  call('PEXPIRE', state, LINGER)
  call('PEXPIRE', known, LINGER)
  waiters.wake(woken)
  return '-'
end

local kept = more.kept or {version = 0, created = nowtext, updated = nowtext}
version = format('%d', math.max(version + 1, kept.version))
local stamp = version .. '-' .. commit
call('ZADD', by_time, kept.updated, body)
feed(stamp)
if fresh then
  if head then
    removal().unlist_views(views(m.owner, m.labels))
    removal().wipe()
  else
    -- Nothing is known of this state, so nothing of it may be here (an engine that evicts leaves parts).
    call('UNLINK', unpack(expiry().parts()))
    call('ZADD', base .. 'by-id:all:' .. tenant, 0, body)
  end
  if head or record[6] or m.turn then
    for _, one in ipairs({state, known, key('known-before')}) do call('PERSIST', one) end
    call('HDEL', state, 'version')
  end
  m.owner, m.labels, m.expires, m.native = nil, nil, nil, nil
  born, origin = commit, commit .. ' ' .. kept.created
end

-- Entries.
local values = {}
for i = 1, put_count do
  local field, n = ARGV[fields + i], #values
  local about, seconds = match(ARGV[puts + 2 * i - 1], '^(%d+ v)(%S*)$')
  local plain = sub(field, 2)
  if seconds ~= '' then
    local expires = text(now + seconds)
    call('ZADD', base .. 'expiry', expires, 'entry\0' .. address .. '\0' .. plain)
    about = about .. expires
  end
  values[n + 1], values[n + 2], values[n + 3], values[n + 4] = field, stamp .. ' ' .. about, plain, ARGV[puts + 2 * i]
end
for i = sections + 1, sections + section_count do put(ARGV[i], stamp) end
for field in pairs(rarer.delete(gone)) do put(field, stamp) end
for i, one in ipairs(more.increments) do
  local field, n = ARGV[fields + one.at], #values
  values[n + 1], values[n + 2] = field, stamp .. ' ' .. one.size .. ' n' .. (one.old and one.old.expires or '')
  if not one.old then values[n + 3], values[n + 4] = sub(field, 2), sums[i] end
end
many('HSET', entries, values)
many('ZADD', key('keys'), named)

-- Logs.
local ranges, removed, places = '', {}, {}
for i, log in ipairs(logs) do
  local touched = log.change and rarer.reduce(log, removed)
  local items, first_seq = {}, log.next
  if log.count > 0 then
    if not log.stored then call('UNLINK', log.list, key('unique:' .. sub(log.field, 5))) end
    log.size = log.size + ARGV[log.at]
    for j = log.at + 1, log.at + log.count do
      local item = rarer.item(log, ARGV[j])
      if item then
        items[#items + 1] = log.next .. ' ' .. item
        log.next, log.head = log.next + 1, log.head + 1
      end
    end
  end
  if #items > 0 then
    many('RPUSH', log.list, items)
    ranges = ranges .. ' ' .. sub(log.field, 5) .. ' ' .. first_seq .. ' ' .. log.next - 1
  end
  places[i] = '-'
  if touched or #items > 0 then
    places[i] = log.first .. ' ' .. log.head .. ' ' .. log.next .. ' ' .. log.size
    put(log.field, stamp .. ' ' .. places[i])
  end
end

-- The record, the indexes, the journal.
if more.owner then rarer.describe(m, more, put) end
if more.once then rarer.keep_once(more.once) end
for _, name in ipairs(views(m.owner, m.labels)) do call('ZADD', base .. 'by-time:' .. name, kept.updated, body) end
if journaled then
  -- '<stamp> <at> <bytes removed> <ranges>\n<removed items><record>'
  local lost = table.concat(removed)
  call('RPUSH', key('journal'), stamp .. ' ' .. nowtext .. ' ' .. #lost .. ranges .. '\n' .. lost .. ARGV[#ARGV])
  if journaled >= JOURNAL_COUNT + JOURNAL_SPARE then call('LTRIM', key('journal'), -JOURNAL_COUNT, -1) end
end
put('head', stamp .. ' ' .. kept.updated .. ' ' .. bytes .. ' ' .. origin)
many('HSET', state, set)

for _, sum in ipairs(sums) do places[#places + 1] = sum end
local made = places[1] and ' ' .. table.concat(places, ' ') or ''
remember(version .. made)

-- Last, when all keys are there: their expiry.
if renewed then
  local later = {}
  expiry().set(m, renewed, later)
  many('HSET', state, later)
elseif ttl == '' and m.expires then
  call('HDEL', state, 'expires', 'native')
  call('ZREM', base .. 'expiry', 'scope\0' .. address)
  for _, one in ipairs(expiry().all_keys()) do call('PERSIST', one) end
  m.expires = nil
end
if m.expires and m.native then
  local left = format('%.0f', math.max(1000 * (tonumber(m.native) - now), 1000))
  for _, log in ipairs(logs) do
    if not log.stored and log.count > 0 then
      call('PEXPIRE', log.list, left)
      call('PEXPIRE', key('unique:' .. sub(log.field, 5)), left)
    end
  end
end
waiters.wake(woken)
return version .. ' ' .. born .. ' ' .. (m.expires or '-') .. made
