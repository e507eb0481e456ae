-- Needs: base load expiry line
-- Reads a state, taking its turn on the way.
-- ARGV: now, inline bytes, nonce, lease seconds, holder, channel, touch, once count, once key,
--       number of tails, then log and length of each, then the wanted entries' '#' fields.
-- Returns now, 'held' and who, or now, lease, expires, record, entries, tails, once.
local m, flat = load()
local nonce, touch, lease = ARGV[3], tonumber(ARGV[7]), ''
local expires = is_alive(m) and tonumber(m.expires)
local later = expires
if expires and touch and expires - now < touch / 2 then later = now + touch end

if nonce ~= '' then
  local span, set, waiters, woken = tonumber(ARGV[4]), {}, nil, nil
  local mine = turn_of(m) == nonce
  local free = not mine and not is_held(m)
  local line, here
  if not (mine or free) or (m.line or '') ~= '' then
    waiters = waiting()
    line, here = waiters.line_of(m, nonce)
  end
  if mine or (free and (not line or not line[1] or line[1][1] == nonce)) then
    if line and not mine then table.remove(line, 1) end
    lease = hold(m, nonce, ARGV[5], span, set)
    if expires then later = math.max(later, now + span) end
  else
    if not here then line[#line + 1] = {nonce, nowtext, ARGV[6], ARGV[5]} end
    if free then woken = waiters.pass_on(m, line, set) end
  end
  if line then waiters.set_line(m, line, set) end
  if later ~= expires then expiry().set(m, later, set) end
  if not m.head or (m.native and not expires) then expiry().linger(m, span, set) else many('HSET', state, set) end
  if woken then waiters.wake(woken) end
  if lease == '' then
    local _, _, _, since = turn_of(m)
    return {nowtext, 'held', m.holder, since}
  end
elseif later ~= expires then
  local set = {}
  expiry().set(m, later, set)
  many('HSET', state, set)
end

if not is_alive(m) then return {nowtext, lease} end

local tails, after = {}, 10 + 2 * tonumber(ARGV[10])
for i = 11, after, 2 do
  local raw, wanted = m['log:' .. ARGV[i]], tonumber(ARGV[i + 1])
  local items = {}
  if raw and wanted > 0 then
    local first, head = match(raw, '^(%d+) (%d+)')
    items = call('LRANGE', key('log:' .. ARGV[i]), -wanted, -1)
    if #items ~= math.min(wanted, head - first + 1) then return {nowtext, 'damaged', 'log:' .. ARGV[i]} end
  end
  tails[#tails + 1] = items
end

local entries, size = {}, tonumber(match(m.head, '%d+$'))
if size <= tonumber(ARGV[2]) then
  entries = call('HGETALL', key('entries'))
else
  for start = after + 1, #ARGV, CHUNK do
    local ask = {}
    for i = start, math.min(start + CHUNK - 1, #ARGV) do
      ask[#ask + 1], ask[#ask + 2] = sub(ARGV[i], 2), ARGV[i]
    end
    local found = call('HMGET', key('entries'), unpack(ask))
    for i = 2, #ask, 2 do
      if found[i] then
        local n = #entries
        entries[n + 1], entries[n + 2], entries[n + 3], entries[n + 4] = ask[i - 1], found[i - 1], ask[i], found[i]
      end
    end
  end
end
if #entries == 0 and size > 0 and call('EXISTS', key('entries')) == 0 then return {nowtext, 'damaged', 'entries'} end

local once = ARGV[8] == '1' and call('HGET', key('once'), ARGV[9])
return {nowtext, lease, m.expires or '', flat, entries, tails, once}
