-- Comes before every script. KEYS[1] is '<prefix>{<partition>}state:<address>'; all other keys have the
-- same tag and are made from it here, so a script never leaves its slot. Whatever could fail is found out
-- before the first write: a script that fails half-way keeps what it wrote. Counters are 64-bit integers
-- and Lua's numbers are doubles, so counters are only ever text here.
local call, sub, find, match = redis.call, string.sub, string.find, string.match
local CHUNK = 1000
local LINGER = 3600000
local GONE_SECONDS, CLAIM_SECONDS = 1, 1
local FEED_COUNT = 2000

local state = KEYS[1]
local tag = find(state, '}state:', 1, true)
local base, address = sub(state, 1, tag), sub(state, tag + 7)

local function key(kind) return base .. kind .. ':' .. address end

local function move_to(other)
  address, state = other, base .. 'state:' .. other
end

-- Times are kept as text that reads back as exactly the same double.
local function text(seconds)
  local short = string.format('%.6f', seconds)
  if tonumber(short) == seconds then return short end
  return string.format('%.17g', seconds)
end

local function clock(given)
  if given ~= '' then return tonumber(given), given end
  local time = call('TIME')
  local exact = time[1] .. '.' .. string.format('%06d', time[2])
  return tonumber(exact), exact
end

local function whole(number) return string.format('%.0f', number) end

-- `unpack` has a limit, so long argument lists go in pieces (of even length, for pairs).
local function many(command, target, list)
  for start = 1, #list, CHUNK do
    call(command, target, unpack(list, start, math.min(start + CHUNK - 1, #list)))
  end
end

local function load()
  local flat, found = call('HGETALL', state), {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found, flat
end

local function is_alive(m, now)
  return m.commit and (not m.expires or tonumber(m.expires) > now)
end

local function is_held(m, now)
  return (m['turn:nonce'] or '') ~= '' and tonumber(m['turn:until']) > now
end

-- '<first> <head> <next seq> <bytes> <stamp>'
local function log_record(raw)
  local first, head, next_seq, size, stamp = match(raw, '^(%d+) (%d+) (%d+) (%d+) (%S+)$')
  return {first = tonumber(first), head = tonumber(head), next = tonumber(next_seq), size = tonumber(size), stamp = stamp}
end

-- '<stamp> <v or n> <bytes>[ <expires>]'
local function entry_record(raw, now)
  local stamp, kind, size, expires = match(raw, '^(%S+) (%a) (%d+) ?(%S*)$')
  local live = expires == '' or tonumber(expires) > now
  return {stamp = stamp, kind = kind, size = tonumber(size), expires = expires, live = live}
end

-- '<seq> <expires or -> <u or -><id bytes> <id> <value>'
local function item_record(raw)
  local _, stop, seq, expires, unique, length = find(raw, '^(%d+) (%S+) ([u-])(%d+) ')
  local body = stop + tonumber(length) + 1
  return {
    seq = seq, expires = expires, unique = unique == 'u', id = sub(raw, stop + 1, body - 1),
    head = sub(raw, 1, body), size = #raw - body,
  }
end

-- The indexes: by id and by time of the last change, per tenant, kind, owner and label.
local tenant, body, kind
local function place()
  tenant, body = '', address
  if sub(address, 1, 1) == '@' then
    local slash = find(address, '/', 1, true)
    tenant, body = sub(address, 2, slash - 1), sub(address, slash + 1)
  end
  kind = match(body, '^%a+')
end

local function views(owner, labels)
  local names = {}
  if owner then names[1] = 'owner:' .. tenant .. ':' .. owner end
  for pair in string.gmatch(labels or '', '[^&]+') do names[#names + 1] = 'label:' .. tenant .. ':' .. pair end
  return names
end

local function unlist_views(names)
  for _, name in ipairs(names) do
    call('ZREM', base .. 'by-id:' .. name, body)
    call('ZREM', base .. 'by-time:' .. name, body)
  end
end

local function unlist(m)
  place()
  unlist_views(views(m.owner, m.labels))
  call('ZREM', base .. 'by-id:all:' .. tenant, body)
  call('ZREM', base .. 'by-time:kind:' .. tenant .. ':' .. kind, body)
end

-- Every key of a state but its own record and the commits it knows.
local function parts_of(m)
  local keys = {key('entries'), key('keys'), key('journal'), key('once'), key('once-times')}
  for field in pairs(m) do
    if sub(field, 1, 4) == 'log:' then
      keys[#keys + 1] = key(field)
      keys[#keys + 1] = key('unique:' .. sub(field, 5))
    end
  end
  return keys
end

local function keys_of(m)
  local keys = parts_of(m)
  keys[#keys + 1], keys[#keys + 2], keys[#keys + 3] = state, key('known'), key('known-before')
  return keys
end

local STATE_FIELDS = {'commit', 'birth', 'created', 'updated', 'expires', 'native', 'bytes', 'owner', 'parent', 'labels'}

-- Removes what a state holds; its version, its turn and its known commits stay.
local function wipe(m)
  local keys = parts_of(m)
  for start = 1, #keys, CHUNK do call('UNLINK', unpack(keys, start, math.min(start + CHUNK - 1, #keys))) end
  local fields = {unpack(STATE_FIELDS)}
  for field in pairs(m) do
    if sub(field, 1, 4) == 'log:' or sub(field, 1, 8) == 'section:' then fields[#fields + 1] = field end
  end
  many('HDEL', state, fields)
  for _, field in ipairs(fields) do m[field] = nil end
  call('ZREM', base .. 'expiry', 'scope\0' .. address)
end

local function feed(stamp, nowtext)
  call('XADD', base .. 'feed', 'MAXLEN', '~', FEED_COUNT, '*', 'scope', address, 'stamp', stamp, 'at', nowtext)
end

-- Drops a state. What is left is a tombstone: its last version, for as long as a lease may live.
local function bury(m, nowtext)
  unlist(m)
  wipe(m)
  call('UNLINK', key('failures'))
  call('PEXPIRE', state, LINGER)
  call('PEXPIRE', key('known'), LINGER)
  call('PEXPIRE', key('known-before'), LINGER)
  feed('', nowtext)
end

-- The engine's own expiry is a backstop at twice the time that is left, and renewed only when it has
-- become much less than that. Relative, since `now` need not be the engine's clock.
local function backstop(m, expires, now)
  local left = math.min(math.max(expires - now, 1), 1e11)
  local native = tonumber(m.native or '')
  if native and native >= now + 1.5 * left then return nil end
  for _, one in ipairs(keys_of(m)) do call('PEXPIRE', one, whole(2000 * left)) end
  return text(now + 2 * left)
end

-- Moves the expiry of a living state to `expires`; `set` collects fields for its record.
local function set_expiry(m, expires, now, set)
  local exact = text(expires)
  call('ZADD', base .. 'expiry', exact, 'scope\0' .. address)
  set[#set + 1], set[#set + 2] = 'expires', exact
  local native = backstop(m, expires, now)
  if native then
    set[#set + 1], set[#set + 2] = 'native', native
    m.native = native
  end
  m.expires = exact
end

-- The line of those who wait for a turn: '<nonce> <seen> <channel> <holder>\n' each, first come first.
-- Who hasn't been seen for a second has gone; `asker` is here now.
local function line_of(m, now, nowtext, asker)
  local line, here = {}, false
  for nonce, seen, channel, holder in string.gmatch(m['turn:line'] or '', '(%d+) (%S+) (%S+) ([^\n]*)\n') do
    if nonce == asker then seen, here = nowtext, true end
    if tonumber(seen) + GONE_SECONDS > now then line[#line + 1] = {nonce, seen, channel, holder} end
  end
  return line, here
end

local function line_text(line)
  local all = {}
  for i, one in ipairs(line) do all[i] = table.concat(one, ' ') .. '\n' end
  return table.concat(all)
end

local function hold(m, nonce, holder, until_, nowtext, set)
  local counter = tonumber(m['turn:counter'] or '0')
  if m['turn:nonce'] ~= nonce then counter = counter + 1 end
  m['turn:nonce'], m['turn:counter'], m['turn:until'] = nonce, whole(counter), text(until_)
  m['turn:holder'], m['turn:since'] = holder, nowtext
  for _, field in ipairs({'turn:nonce', 'turn:counter', 'turn:until', 'turn:holder', 'turn:since'}) do
    set[#set + 1], set[#set + 2] = field, m[field]
  end
end

-- The turn goes to the first in line, who has a second to claim it, or to nobody.
-- Returns whom to wake, for when everything is written.
local function pass_on(m, line, now, nowtext, set)
  local first = table.remove(line, 1)
  if first then
    hold(m, first[1], first[4], now + CLAIM_SECONDS, nowtext, set)
  else
    m['turn:nonce'] = ''
    set[#set + 1], set[#set + 2] = 'turn:nonce', ''
  end
  local rest = line_text(line)
  if rest ~= (m['turn:line'] or '') then set[#set + 1], set[#set + 2] = 'turn:line', rest end
  return first
end

-- Waking is a courtesy, for those who wait also poll: a user without the right to publish loses nothing else.
local function wake(one)
  if one and one[3] ~= '-' then redis.pcall('PUBLISH', one[3], one[1]) end
end
