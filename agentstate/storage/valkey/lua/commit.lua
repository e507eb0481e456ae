-- Changes one state, all or nothing. The arguments come in the order in which they are taken below.
local KNOWN_COUNT, KNOWN_SECONDS = 32, 30
local ONCE_COUNT, ONCE_SECONDS = 1000, 86400
local JOURNAL_COUNT = 1000

local taken = 0
local function arg()
  taken = taken + 1
  return ARGV[taken]
end
local function number() return tonumber(arg()) end

local now, nowtext = clock(arg())
local resent, commit, birth, wanted = arg() == '1', arg(), arg(), arg()
local nonce, release, clear = arg(), arg() == '1', arg() == '1'
local ttl, sliding = arg(), arg() == '1'
local owner, parent, labels, record = arg(), arg(), arg(), arg()
local m, flat = load()

-- A commit that was sent a second time, because its reply was lost, is done once: the commits of at
-- least the last 30 seconds are known, in two generations.
local since = tonumber(m.known or '')
if since then
  local done = call('HGET', key('known'), commit)
  if not done and (resent or now - since < KNOWN_SECONDS) then
    done = call('HGET', key('known-before'), commit)
  end
  if done then return {'again', done, flat} end
end

-- First everything that can be wrong.
if nonce ~= '' and m['turn:nonce'] ~= nonce then return {'lost'} end
local alive = is_alive(m, now) or (m.commit and nonce ~= '' and birth == m.birth)
local found = alive and m.version .. '-' .. m.commit or '-'
if birth ~= '*' and birth ~= (alive and m.birth or '-') then
  return {'conflict', 'birth', alive and m.birth or '-'}
end
if wanted ~= '*' and wanted ~= found then return {'conflict', 'base', found} end
local fresh = clear or not alive

local fields, stamps, have = {}, {}, {}
for i = 1, number() do fields[i] = arg() end
if alive and #fields > 0 then
  local entries = key('entries')
  for start = 1, #fields, CHUNK do
    local raw = call('HMGET', entries, unpack(fields, start, math.min(start + CHUNK - 1, #fields)))
    for i = 1, #raw do
      if raw[i] then stamps[start + i - 1] = entry_record(raw[i], now) end
    end
  end
end
if alive and #fields > 0 and not next(stamps) and m.bytes ~= '0' and call('EXISTS', key('entries')) == 0 then
  return {'damaged', 'entries'}
end
for i = 1, number() do
  local at, expected = number(), arg()
  local stamp = stamps[at] and stamps[at].live and stamps[at].stamp or '-'
  if stamp ~= expected then return {'conflict', 'entry', stamp, whole(at)} end
end
for i = 1, number() do
  local name, expected = arg(), arg()
  local stamp = alive and m['section:' .. name] or '-'
  if stamp ~= expected then return {'conflict', 'section', stamp, name} end
end
for i = 1, number() do
  local name, expected = arg(), arg()
  local raw = alive and m['log:' .. name]
  local stamp = raw and log_record(raw).stamp or '-'
  if stamp ~= expected then return {'conflict', 'log', stamp, name} end
end

local once = nil
if number() == 1 then
  once = {arg(), arg()}
  local raw = alive and call('HGET', key('once'), once[1])
  if raw and tonumber(match(raw, '^%S+')) > now - ONCE_SECONDS then return {'conflict', 'once', '-'} end
end

local deletes, puts, increments, deleted = {}, {}, {}, {}
for i = 1, number() do
  deletes[i] = number()
  deleted[deletes[i]] = true
end
for i = 1, number() do puts[i] = {number(), arg(), arg()} end
for i = 1, number() do
  local at, by = number(), arg()
  local old = not fresh and not deleted[at] and stamps[at]
  if not (old and old.live) then old = nil end
  if old and old.kind ~= 'n' then return {'no counter', whole(at)} end
  increments[i] = {at, by, old}
end

local logs, appended = {}, false
for i = 1, number() do
  local name = arg()
  local log = {name = name, cut = number(), trim = number(), edits = {}, appends = {}}
  local raw = not fresh and m['log:' .. name]
  log.now = raw and log_record(raw)
  if log.now and call('LLEN', key('log:' .. name)) ~= log.now.head - log.now.first + 1 then
    return {'damaged', 'log:' .. name}
  end
  for j = 1, number() do
    local position, seq, value = number(), arg(), arg()
    local old = log.now and position >= math.max(log.now.first, log.trim or 0)
      and position <= math.min(log.now.head, (log.cut or math.huge) - 1)
      and call('LINDEX', key('log:' .. name), position - log.now.first)
    local item = old and item_record(old)
    if not item or item.seq ~= seq then return {'edited', name, whole(position), item and item.seq or '-'} end
    log.edits[j] = {position, item.head .. value}
  end
  for j = 1, number() do log.appends[j] = {arg(), arg(), arg(), number()} end
  if #log.appends > 0 then appended = true end
  logs[i] = log
end

-- Counters come first: adding may overflow, and is then taken back.
local entries, counters = key('entries'), {}
local function take_back(count)
  for i = 1, count do
    local at, by, old = unpack(increments[i])
    if old then
      local field = sub(fields[at], 2)
      if by == '-9223372036854775808' then
        call('HINCRBY', entries, field, '9223372036854775807')
        by = '-1'
      end
      call('HINCRBY', entries, field, sub(by, 1, 1) == '-' and sub(by, 2) or '-' .. by)
    end
  end
end
for i, one in ipairs(increments) do
  counters[i] = one[2]
  if one[3] then
    local field = sub(fields[one[1]], 2)
    local sum = redis.pcall('HINCRBY', entries, field, one[2])
    if type(sum) == 'table' then
      take_back(i - 1)
      if find(sum.err, 'overflow', 1, true) then return {'overflow', whole(one[1])} end
      return sum
    end
    counters[i] = call('HGET', entries, field)
  end
end

local set, woken = {}, nil
local function put(field, value)
  set[#set + 1], set[#set + 2] = field, value
end
if release and nonce ~= '' then
  woken = pass_on(m, line_of(m, now, nowtext), now, nowtext, set)
end

-- The commits that are known: a generation is over when it holds 32 and is 30 seconds old.
local version = tonumber(m.version or '0')
local function remember(outcome)
  if not since then
    put('known', nowtext)
  elseif now - since >= KNOWN_SECONDS and call('HLEN', key('known')) >= KNOWN_COUNT then
    call('RENAME', key('known'), key('known-before'))
    put('known', nowtext)
  end
  call('HSET', key('known'), commit, outcome)
end

place()
if clear and #puts == 0 and #increments == 0 and not appended then
  if m.commit then
    bury(m, nowtext)
  end
  remember('- - -')
  put('version', whole(version))
  call('HSET', state, unpack(set))
  call('PEXPIRE', state, LINGER)
  call('PEXPIRE', key('known'), LINGER)
  wake(woken)
  return {'dropped'}
end

version = version + 1
local stamp = whole(version) .. '-' .. commit
local before = {owner = m.owner, labels = m.labels, listed = m.commit}
if fresh then
  if m.commit then
    wipe(m)
  else
    -- Nothing is known of this state, so nothing of it may be here (an engine that evicts leaves parts).
    call('UNLINK', unpack(parts_of(m)))
  end
  if next(m) then
    call('PERSIST', state)
    call('PERSIST', key('known'))
    call('PERSIST', key('known-before'))
  end
  m.birth, m.created, m.bytes = commit, nowtext, '0'
  put('birth', commit)
  put('created', nowtext)
end

-- Entries.
local bytes, sections, values, gone, named, unnamed = tonumber(m.bytes), {}, {}, {}, {}, {}
if not fresh then
  for at, old in pairs(stamps) do have[at] = old.size end
end
local function section_of(field) return match(field, '^#([^/]*)/') end
for _, at in ipairs(deletes) do
  if have[at] then
    local field = sub(fields[at], 2)
    bytes = bytes - have[at]
    have[at] = nil
    gone[#gone + 1], gone[#gone + 2] = field, fields[at]
    unnamed[#unnamed + 1] = field
    sections[section_of(fields[at])] = true
  end
end
local function write(at, value, kind_, size, expires)
  local field = sub(fields[at], 2)
  if not have[at] then named[#named + 1], named[#named + 2] = '0', field end
  bytes = bytes - (have[at] or 0) + size
  have[at] = size
  if value then values[#values + 1], values[#values + 2] = field, value end
  local says = stamp .. ' ' .. kind_ .. ' ' .. whole(size) .. (expires and ' ' .. expires or '')
  values[#values + 1], values[#values + 2] = fields[at], says
  sections[section_of(fields[at])] = true
end
local function key_size(at) return #fields[at] - find(fields[at], '/', 1, true) end
for _, one in ipairs(puts) do
  local at, value, own = unpack(one)
  local expires
  if own ~= '' then
    expires = text(now + tonumber(own))
    call('ZADD', base .. 'expiry', expires, 'entry\0' .. address .. '\0' .. sub(fields[at], 2))
  end
  write(at, value, 'v', #value + key_size(at), expires)
end
for i, one in ipairs(increments) do
  local at, _, old = unpack(one)
  write(at, not old and counters[i], 'n', 8 + key_size(at), old and old.expires ~= '' and old.expires)
end
many('HDEL', entries, gone)
many('ZREM', key('keys'), unnamed)
many('HSET', entries, values)
many('ZADD', key('keys'), named)
for name in pairs(sections) do put('section:' .. name, stamp) end

-- Logs.
local heads, ranges, removed, replies = {}, {}, {}, {}
local function note_removed(log, raw, position)
  removed[#removed + 1] = log.name .. ' ' .. whole(position) .. ' ' .. #raw .. '\n' .. raw
end
local function forget(log, raw, position)
  local item = item_record(raw)
  log.now.size = log.now.size - item.size
  note_removed(log, raw, position)
  local at = item.unique and call('HGET', key('unique:' .. log.name), item.id)
  if at and match(at, '%d+$') == item.seq then call('HDEL', key('unique:' .. log.name), item.id) end
end
for i, log in ipairs(logs) do
  local list, touched, first_seq = key('log:' .. log.name), false, nil
  if log.now and log.cut and log.cut <= log.now.head then
    local from = math.max(log.cut, log.now.first)
    for j, raw in ipairs(call('LRANGE', list, from - log.now.first, -1)) do forget(log, raw, from + j - 1) end
    if from == log.now.first then call('UNLINK', list) else call('LTRIM', list, 0, from - log.now.first - 1) end
    touched = touched or from <= log.now.head
    log.now.head = from - 1
  end
  if log.now and log.trim and log.trim > log.now.first and log.now.first <= log.now.head then
    local count = math.min(log.trim, log.now.head + 1) - log.now.first
    for j, raw in ipairs(call('LRANGE', list, 0, count - 1)) do forget(log, raw, log.now.first + j - 1) end
    call('LTRIM', list, count, -1)
    log.now.first = log.now.first + count
    touched = true
  end
  for _, edit in ipairs(log.edits) do
    local position, new = unpack(edit)
    local old = call('LINDEX', list, position - log.now.first)
    call('LSET', list, position - log.now.first, new)
    log.now.size = log.now.size - item_record(old).size + item_record(new).size
    note_removed(log, old, position)
    touched = true
  end
  local items = {}
  if #log.appends > 0 and not log.now then
    call('UNLINK', list, key('unique:' .. log.name))
    log.now, log.new = {first = 1, head = 0, next = 1, size = 0}, true
  end
  for _, one in ipairs(log.appends) do
    local id, own, tail, size = unpack(one)
    if id == '' or call('HEXISTS', key('unique:' .. log.name), sub(id, 2)) == 0 then
      local seq, position, expires = whole(log.now.next), whole(log.now.head + 1), '-'
      log.now.next, log.now.head, log.now.size = log.now.next + 1, log.now.head + 1, log.now.size + size
      if own ~= '' then
        expires = text(now + tonumber(own))
        local member = {'item', address, log.name, position, seq}
        call('ZADD', base .. 'expiry', expires, table.concat(member, '\0'))
      end
      items[#items + 1] = seq .. ' ' .. expires .. ' ' .. tail
      if id ~= '' then call('HSET', key('unique:' .. log.name), sub(id, 2), position .. ' ' .. seq) end
      first_seq = first_seq or seq
    end
  end
  if #items > 0 then
    many('RPUSH', list, items)
    ranges[#ranges + 1] = log.name .. ' ' .. first_seq .. ' ' .. whole(log.now.next - 1)
  end
  if touched or #items > 0 then
    local now_ = log.now
    local place_ = whole(now_.first) .. ' ' .. whole(now_.head) .. ' ' .. whole(now_.next) .. ' ' .. whole(now_.size)
    m['log:' .. log.name] = place_
    put('log:' .. log.name, place_ .. ' ' .. stamp)
    heads[i], replies[i] = whole(now_.head), place_
  else
    heads[i], replies[i] = '-', ''
  end
end

-- The record.
local clears = {}
local function change(field, said)
  if said == 'k' then return end
  if sub(said, 1, 1) == '=' then
    m[field] = sub(said, 2)
    put(field, m[field])
  else
    m[field] = nil
    clears[#clears + 1] = field
  end
end
change('owner', owner)
change('parent', parent)
change('labels', labels)
if fresh or m.owner ~= before.owner or m.labels ~= before.labels then
  local kept = {}
  for _, name in ipairs(views(m.owner, m.labels)) do
    kept[name] = true
    call('ZADD', base .. 'by-id:' .. name, 0, body)
  end
  local lost = {}
  for _, name in ipairs(views(before.owner, before.labels)) do
    if not kept[name] then lost[#lost + 1] = name end
  end
  unlist_views(lost)
end
if not before.listed then call('ZADD', base .. 'by-id:all:' .. tenant, 0, body) end
call('ZADD', base .. 'by-time:kind:' .. tenant .. ':' .. kind, nowtext, body)
for _, name in ipairs(views(m.owner, m.labels)) do call('ZADD', base .. 'by-time:' .. name, nowtext, body) end

put('version', whole(version))
put('commit', commit)
put('updated', nowtext)
put('bytes', whole(bytes))
remember(whole(version) .. ' ' .. (#heads > 0 and table.concat(heads, ',') or '-') .. ' '
  .. (#counters > 0 and table.concat(counters, ',') or '-'))
if record ~= '-' then
  call('XADD', key('journal'), 'MAXLEN', JOURNAL_COUNT, whole(version) .. '-0', 'commit', commit, 'at', nowtext,
    'record', sub(record, 2), 'ranges', table.concat(ranges, ' '), 'removed', table.concat(removed))
end
if once then
  local times = key('once-times')
  call('HSET', key('once'), once[1], nowtext .. ' ' .. once[2])
  call('ZADD', times, nowtext, once[1])
  local stale = call('ZRANGEBYSCORE', times, '-inf', text(now - ONCE_SECONDS))
  if #stale == 0 then stale = call('ZRANGE', times, 0, -1 - ONCE_COUNT) end
  many('HDEL', key('once'), stale)
  many('ZREM', times, stale)
end
if ttl == '' and m.expires then
  clears[#clears + 1], clears[#clears + 2] = 'expires', 'native'
  m.expires = nil
  call('ZREM', base .. 'expiry', 'scope\0' .. address)
  for _, one in ipairs(keys_of(m)) do call('PERSIST', one) end
end
many('HDEL', state, clears)
many('HSET', state, set)

-- Last, when all keys are there: their expiry.
if ttl ~= '' and ttl ~= 'k' and (sliding or fresh) then
  local later = {}
  set_expiry(m, now + tonumber(ttl), now, later)
  many('HSET', state, later)
end
if m.expires and m.native then
  local left = whole(math.max(1000 * (tonumber(m.native) - now), 1000))
  for _, log in ipairs(logs) do
    if log.new then
      call('PEXPIRE', key('log:' .. log.name), left)
      call('PEXPIRE', key('unique:' .. log.name), left)
    end
  end
end
feed(stamp, nowtext)
wake(woken)

local reply = {'ok', whole(version), m.birth, m.expires or ''}
for i = 1, #logs do reply[#reply + 1] = replies[i] end
for i = 1, #counters do reply[#reply + 1] = counters[i] end
return reply
