-- Needs: base records index expiry remove line
-- Changes one state, all or nothing.
-- ARGV: now, '1' when sent again, commit, birth, base, nonce, '1' to release, '1' to clear, ttl, '1' when it
--       slides, owner, parent, labels, '1' when there is a journal record, which is then the last one;
--       and in between in the order in which they are taken. Lists are read where they stand.
local KNOWN_COUNT, KNOWN_SECONDS = 32, 30
local ONCE_COUNT, ONCE_SECONDS = 1000, 86400
local JOURNAL_COUNT, RECORD_FIELDS = 1000, 10
local commit, birth, nonce, ttl = ARGV[3], ARGV[4], ARGV[6], ARGV[9]

local taken = 14
local function number()
  taken = taken + 1
  return tonumber(ARGV[taken])
end

-- The record, with the logs to be changed and then the fields with conditions.
local log_count, condition_count = number(), number()
local log_fields, condition_fields = taken, taken + log_count
taken = condition_fields + condition_count
local record = call('HMGET', state, 'head', 'born', 'version', 'turn', 'line', 'expires', 'native', 'known', 'owner',
  'labels', unpack(ARGV, log_fields + 1, taken))
local m = {
  head = record[1], turn = record[4], line = record[5], expires = record[6], native = record[7], owner = record[9],
  labels = record[10],
}

-- A commit that was sent a second time, because its reply was lost, is done once: the commits of at
-- least the last 30 seconds are known, in two generations.
local since, known_before
if record[8] then
  since, known_before = match(record[8], '^(%S+)(.*)$')
  since = tonumber(since)
  local done = call('HGET', key('known'), commit)
  if not done and known_before ~= '' and (ARGV[2] == '1' or now - since < KNOWN_SECONDS) then
    done = call('HGET', key('known-before'), commit)
  end
  if done then return {'again', done, call('HGETALL', state)} end
end

-- First everything that can be wrong. What can't be read makes the script fail, and nothing was written yet.
if m.native and not tonumber(m.native) then m.native = nil end
if nonce ~= '' and turn_of(m) ~= nonce then return {'lost'} end
local version, before, born, bytes = record[3] or '0', nil, nil, 0
if m.head then
  version, before, bytes = match(m.head, '^(%d+)%-(%x+) %S+ (%d+)$')
  born, bytes = sub(record[2], 1, 16), tonumber(bytes)
end
local alive = is_alive(m) or (m.head and nonce ~= '' and birth == born)
local found = alive and version .. '-' .. before or '-'
if birth ~= '*' and birth ~= (alive and born or '-') then return {'conflict', 'birth', alive and born or '-'} end
if ARGV[5] ~= '*' and ARGV[5] ~= found then return {'conflict', 'base', found} end
local clear = ARGV[8] == '1'
local fresh = clear or not alive

for i = 1, condition_count do
  local raw = alive and record[RECORD_FIELDS + log_count + i]
  local stamp = raw and match(raw, '%S+$') or '-'
  if stamp ~= ARGV[taken + i] then return {'conflict', 'field', stamp, ARGV[condition_fields + i]} end
end
taken = taken + condition_count

-- The entries concerned are numbered; ARGV[fields + n] is the '#' field of the n-th.
local field_count = number()
local fields, stamps = taken, {}
taken = taken + field_count
if alive then
  for start = 1, field_count, CHUNK do
    local stop = math.min(start + CHUNK - 1, field_count)
    local raw = call('HMGET', key('entries'), unpack(ARGV, fields + start, fields + stop))
    for i = start, stop do
      if raw[i - start + 1] then stamps[i] = entry_record(raw[i - start + 1]) end
    end
  end
  if field_count > 0 and bytes > 0 and not next(stamps) and call('EXISTS', key('entries')) == 0 then
    return {'damaged', 'entries'}
  end
end
for _ = 1, number() do
  local at, stamp = number(), '-'
  taken = taken + 1
  if stamps[at] and stamps[at].live then stamp = stamps[at].stamp end
  if stamp ~= ARGV[taken] then return {'conflict', 'entry', stamp, at .. ''} end
end

local once_key, once_value
if number() == 1 then
  once_key, once_value = ARGV[taken + 1], ARGV[taken + 2]
  taken = taken + 2
  local raw = alive and call('HGET', key('once'), once_key)
  if raw and tonumber(match(raw, '^%S+')) > now - ONCE_SECONDS then return {'conflict', 'once', '-'} end
end

local delete_count = number()
local deletes, deleted = taken, nil
for i = 1, delete_count do
  deleted = deleted or {}
  deleted[number()] = true
end
local put_count = number()
local puts = taken
taken = taken + 3 * put_count
local increments = {}
for i = 1, number() do
  local at = number()
  taken = taken + 1
  local old = not fresh and not (deleted and deleted[at]) and stamps[at]
  if not (old and old.live) then old = nil end
  if old and old.kind ~= 'n' then return {'no counter', at .. ''} end
  increments[i] = {at, ARGV[taken], old}
end

-- What cuts and trims remove: '{raw, position, item}' each. Read now, since nonsense can't be written over.
local function removed_by(log)
  local state_of, found = log.now, {}
  local function take(first, last)
    for j, raw in ipairs(call('LRANGE', log.list, first - state_of.first, last - state_of.first)) do
      found[#found + 1] = {raw, first + j - 1, item_record(raw)}
    end
  end
  local head = state_of.head
  if log.cut and log.cut <= head then
    log.cut_from = math.max(log.cut, state_of.first)
    if log.cut_from <= head then take(log.cut_from, head) end
    head = log.cut_from - 1
  end
  if log.trim and log.trim > state_of.first and state_of.first <= head then
    log.trim_to = math.min(log.trim, head + 1)
    take(state_of.first, log.trim_to - 1)
  end
  return found
end

local logs, appended = {}, false
for i = 1, log_count do
  local field = ARGV[log_fields + i]
  local raw = not fresh and record[RECORD_FIELDS + i]
  local log = {field = field, list = key(field), cut = number(), trim = number(), now = raw and log_record(raw)}
  local state_of = log.now
  if state_of and call('LLEN', log.list) ~= state_of.head - state_of.first + 1 then return {'damaged', field} end
  for j = 1, number() do
    local position = number()
    local seq, value = ARGV[taken + 1], ARGV[taken + 2]
    taken = taken + 2
    local old = state_of and position >= math.max(state_of.first, log.trim or 0)
      and position <= math.min(state_of.head, (log.cut or math.huge) - 1)
      and call('LINDEX', log.list, position - state_of.first)
    local item = old and item_record(old)
    if not item or item.seq ~= seq then return {'edited', field, position .. '', item and item.seq or '-'} end
    log.edits = log.edits or {}
    log.edits[j] = {position, item.head .. value}
  end
  if state_of and (log.cut or log.trim) then log.gone = removed_by(log) end
  log.append_count = number()
  log.appends = taken
  taken = taken + 4 * log.append_count
  appended = appended or log.append_count > 0
  logs[i] = log
end

-- Counters come first: adding may overflow, and is then taken back.
local entries, counters = key('entries'), {}
for i, one in ipairs(increments) do
  local at, by, old = one[1], one[2], one[3]
  counters[i] = by
  if old then
    local field = sub(ARGV[fields + at], 2)
    local sum = redis.pcall('HINCRBY', entries, field, by)
    if type(sum) == 'table' then
      for j = 1, i - 1 do
        if increments[j][3] then
          field, by = sub(ARGV[fields + increments[j][1]], 2), increments[j][2]
          if by == '-9223372036854775808' then
            call('HINCRBY', entries, field, '9223372036854775807')
            by = '-1'
          end
          call('HINCRBY', entries, field, sub(by, 1, 1) == '-' and sub(by, 2) or '-' .. by)
        end
      end
      if find(sum.err, 'overflow', 1, true) then return {'overflow', at .. ''} end
      return sum
    end
    counters[i] = call('HGET', entries, field)
  end
end

local set, waiters, woken = {}, nil, nil
local function put(field, value) set[#set + 1], set[#set + 2] = field, value end
if ARGV[7] == '1' and nonce ~= '' then
  if (m.line or '') == '' then
    local _, counter = turn_of(m)
    put('turn', '0 ' .. counter)
  else
    waiters = waiting()
    woken = waiters.pass_on(m, waiters.line_of(m), set)
  end
end

-- The commits that are known: a generation is over when it holds 32 and is 30 seconds old.
if not since then
  put('known', nowtext)
elseif now - since >= KNOWN_SECONDS and call('HLEN', key('known')) >= KNOWN_COUNT then
  call('RENAME', key('known'), key('known-before'))
  put('known', nowtext .. ' and before')
end

if clear and put_count == 0 and #increments == 0 and not appended then
  if m.head then removal().bury(m) else put('version', version) end
  call('HSET', key('known'), commit, '- - -')
  many('HSET', state, set)
  call('PEXPIRE', state, LINGER)
  call('PEXPIRE', key('known'), LINGER)
  if woken then waiters.wake(woken) end
  return {'dropped'}
end

version = version + 1 .. ''
local stamp, old_owner, old_labels = version .. '-' .. commit, m.owner, m.labels
if fresh then
  if m.head then
    removal().wipe()
  else
    -- Nothing is known of this state, so nothing of it may be here (an engine that evicts leaves parts).
    call('UNLINK', unpack(expiry().parts()))
    call('ZADD', base .. 'by-id:all:' .. tenant, 0, body)
  end
  if m.head or record[3] or m.turn then
    for _, one in ipairs({state, key('known'), key('known-before')}) do call('PERSIST', one) end
    call('HDEL', state, 'version')
  end
  m.owner, m.labels, m.expires, m.native = nil, nil, nil, nil
  born, bytes, stamps = commit, 0, {}
  put('born', commit .. ' ' .. nowtext)
end

-- Entries. From here on a stamp of `stamps` stands for an entry that is there.
local sections, values, gone, named = {}, {}, nil, nil
local function touch(field)
  local section = match(field, '^#([^/]*)')
  if not sections[section] then
    sections[section] = true
    put('section:' .. section, stamp)
  end
  return #field - #section - 2
end
for i = 1, delete_count do
  local at = tonumber(ARGV[deletes + i])
  local old = stamps[at]
  if old then
    local field = ARGV[fields + at]
    gone = gone or {}
    gone[#gone + 1], gone[#gone + 2] = sub(field, 2), field
    call('ZREM', key('keys'), sub(field, 2))
    bytes, stamps[at] = bytes - old.size, nil
    touch(field)
  end
end
local function write(at, kind_, value, size, expires)
  local field = ARGV[fields + at]
  local plain, old, n = sub(field, 2), stamps[at], #values
  size = size + touch(field)
  if old then
    bytes = bytes - old.size
  else
    named = named or {}
    named[#named + 1], named[#named + 2] = 0, plain
  end
  bytes, stamps[at] = bytes + size, {size = size}
  values[n + 1], values[n + 2] = field, stamp .. ' ' .. kind_ .. ' ' .. size .. expires
  if value then values[n + 3], values[n + 4] = plain, value end
  return plain
end
for i = puts + 1, puts + 3 * put_count, 3 do
  local value, own = ARGV[i + 1], ARGV[i + 2]
  if own == '' then
    write(tonumber(ARGV[i]), 'v', value, #value, '')
  else
    local expires = text(now + tonumber(own))
    local plain = write(tonumber(ARGV[i]), 'v', value, #value, ' ' .. expires)
    call('ZADD', base .. 'expiry', expires, 'entry\0' .. address .. '\0' .. plain)
  end
end
for i, one in ipairs(increments) do
  local old = one[3]
  write(one[1], 'n', not old and counters[i], 8, old and old.expires ~= '' and ' ' .. old.expires or '')
end
if gone then many('HDEL', entries, gone) end
many('HSET', entries, values)
if named then many('ZADD', key('keys'), named) end

-- Logs.
local heads, ranges, removed, reply = {}, {}, {}, {'ok', version, born, ''}

-- Cuts, trims and edits; returns whether the log has changed.
local function reduce(log)
  local list, state_of, unique, touched = log.list, log.now, key('unique:' .. sub(log.field, 5)), false
  local function note(raw, position)
    removed[#removed + 1] = sub(log.field, 5) .. ' ' .. position .. ' ' .. #raw .. '\n' .. raw
  end
  for _, one in ipairs(log.gone or {}) do
    local raw, position, item = one[1], one[2], one[3]
    state_of.size = state_of.size - item.size
    note(raw, position)
    local at = item.unique and call('HGET', unique, item.id)
    if at and match(at, '%d+$') == item.seq then call('HDEL', unique, item.id) end
    touched = true
  end
  local from = log.cut_from
  if from then
    if from == state_of.first then call('UNLINK', list) else call('LTRIM', list, 0, from - state_of.first - 1) end
    state_of.head = from - 1
  end
  if log.trim_to then
    call('LTRIM', list, log.trim_to - state_of.first, -1)
    state_of.first = log.trim_to
  end
  for _, edit in ipairs(log.edits or {}) do
    local position, new = edit[1], edit[2]
    local old = call('LINDEX', list, position - state_of.first)
    call('LSET', list, position - state_of.first, new)
    state_of.size = state_of.size - item_record(old).size + item_record(new).size
    note(old, position)
    touched = true
  end
  return touched
end

for i, log in ipairs(logs) do
  local touched = (log.gone or log.edits) and reduce(log)
  local unique, state_of, items, first_seq = nil, log.now, {}, nil
  if log.append_count > 0 and not state_of then
    call('UNLINK', log.list, key('unique:' .. sub(log.field, 5)))
    state_of, log.new = {first = 1, head = 0, next = 1, size = 0}, true
  end
  for j = log.appends + 1, log.appends + 4 * log.append_count, 4 do
    local id, own, expires = ARGV[j], ARGV[j + 1], '-'
    if id ~= '' then unique, id = key('unique:' .. sub(log.field, 5)), sub(id, 2) end
    if not unique or call('HEXISTS', unique, id) == 0 then
      local seq, position = state_of.next .. '', state_of.head + 1
      state_of.next, state_of.head, state_of.size = state_of.next + 1, position, state_of.size + tonumber(ARGV[j + 3])
      first_seq = first_seq or seq
      if own ~= '' then
        expires = text(now + tonumber(own))
        local member = table.concat({'item', address, sub(log.field, 5), position, seq}, '\0')
        call('ZADD', base .. 'expiry', expires, member)
      end
      if unique then call('HSET', unique, id, position .. ' ' .. seq) end
      items[#items + 1] = seq .. ' ' .. expires .. ' ' .. ARGV[j + 2]
    end
    unique = nil
  end
  heads[i], reply[4 + i] = '-', ''
  if first_seq then
    many('RPUSH', log.list, items)
    ranges[#ranges + 1] = sub(log.field, 5) .. ' ' .. first_seq .. ' ' .. state_of.next - 1
  end
  if touched or first_seq then
    local place = state_of.first .. ' ' .. state_of.head .. ' ' .. state_of.next .. ' ' .. state_of.size
    put(log.field, place .. ' ' .. stamp)
    heads[i], reply[4 + i] = state_of.head, place
  end
end
for i = 1, #counters do reply[4 + log_count + i] = counters[i] end

-- The record and the indexes.
local cleared = nil
for i, field in ipairs({'owner', 'parent', 'labels'}) do
  local said = ARGV[10 + i]
  if said == '-' then
    m[field] = nil
    cleared = cleared or {}
    cleared[#cleared + 1] = field
  elseif said ~= 'k' then
    m[field] = sub(said, 2)
    put(field, m[field])
  end
end
local lists = (m.owner or m.labels) and views(m.owner, m.labels) or {}
if m.owner ~= old_owner or m.labels ~= old_labels then
  local kept, lost = {}, {}
  for _, name in ipairs(lists) do
    kept[name] = true
    call('ZADD', base .. 'by-id:' .. name, 0, body)
  end
  for _, name in ipairs(views(old_owner, old_labels)) do
    if not kept[name] then lost[#lost + 1] = name end
  end
  removal().unlist_views(lost)
end
call('ZADD', base .. 'by-time:kind:' .. tenant .. ':' .. kind, nowtext, body)
for _, name in ipairs(lists) do call('ZADD', base .. 'by-time:' .. name, nowtext, body) end

put('head', stamp .. ' ' .. nowtext .. ' ' .. bytes)
call('HSET', key('known'), commit, version .. ' ' .. (log_count > 0 and table.concat(heads, ',') or '-') .. ' '
  .. (#counters > 0 and table.concat(counters, ',') or '-'))
if ARGV[14] == '1' then
  -- '<stamp> <at> <record bytes> <ranges>\n<record><removed items>'
  local head = stamp .. ' ' .. nowtext .. ' ' .. #ARGV[#ARGV] .. ' ' .. table.concat(ranges, ' ') .. '\n'
  local count = call('RPUSH', key('journal'), head .. ARGV[#ARGV] .. table.concat(removed))
  if count > JOURNAL_COUNT then call('LTRIM', key('journal'), -JOURNAL_COUNT, -1) end
end
if once_key then
  local times = key('once-times')
  call('HSET', key('once'), once_key, nowtext .. ' ' .. once_value)
  call('ZADD', times, nowtext, once_key)
  local stale = call('ZRANGEBYSCORE', times, '-inf', text(now - ONCE_SECONDS))
  if #stale == 0 then stale = call('ZRANGE', times, 0, -1 - ONCE_COUNT) end
  many('HDEL', key('once'), stale)
  many('ZREM', times, stale)
end
if ttl == '' and m.expires then
  cleared = cleared or {}
  cleared[#cleared + 1], cleared[#cleared + 2] = 'expires', 'native'
  m.expires = nil
  call('ZREM', base .. 'expiry', 'scope\0' .. address)
  for _, one in ipairs(expiry().all_keys()) do call('PERSIST', one) end
end
if cleared then many('HDEL', state, cleared) end
many('HSET', state, set)

-- Last, when all keys are there: their expiry.
if ttl ~= '' and ttl ~= 'k' and (ARGV[10] == '1' or fresh) then
  local later = {}
  expiry().set(m, now + tonumber(ttl), later)
  many('HSET', state, later)
end
if m.expires and m.native then
  local left = format('%.0f', math.max(1000 * (tonumber(m.native) - now), 1000))
  for _, log in ipairs(logs) do
    if log.new then
      call('PEXPIRE', log.list, left)
      call('PEXPIRE', key('unique:' .. sub(log.field, 5)), left)
    end
  end
end
feed(stamp)
if woken then waiters.wake(woken) end
reply[4] = m.expires or ''
return reply
