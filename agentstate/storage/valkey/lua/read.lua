-- Reads a state, taking its turn on the way.
-- ARGV: now, inline bytes, nonce, lease seconds, holder, channel, touch, once count, once key,
--       number of tails, then log and length of each, then the wanted entries' '#' fields.
-- Returns now, 'held' and who, or now, lease, expires, record, entries, tails, once.
local now, nowtext = clock(ARGV[1])
local m, flat = load()
local nonce, lease = ARGV[3], ''

if nonce ~= '' then
  local span, set, woken = tonumber(ARGV[4]), {}, nil
  local line, here = line_of(m, now, nowtext, nonce)
  local mine = m['turn:nonce'] == nonce
  local free = not mine and not is_held(m, now)
  if mine or (free and (not line[1] or line[1][1] == nonce)) then
    if not mine and line[1] then table.remove(line, 1) end
    hold(m, nonce, ARGV[5], now + span, nowtext, set)
    lease = m['turn:counter'] .. ' ' .. m['turn:until']
  else
    if not here then line[#line + 1] = {nonce, nowtext, ARGV[6], ARGV[5]} end
    if free then woken = pass_on(m, line, now, nowtext, set) end
  end
  local rest = line_text(line)
  if rest ~= (m['turn:line'] or '') then set[#set + 1], set[#set + 2] = 'turn:line', rest end
  if is_alive(m, now) and m.expires then
    local expires, touch = tonumber(m.expires), tonumber(ARGV[7])
    local later = expires
    if touch and expires - now < touch / 2 then later = now + touch end
    if lease ~= '' then later = math.max(later, now + span) end
    if later ~= expires then set_expiry(m, later, now, set) end
  elseif not m.commit or m.native then
    -- A turn on what doesn't exist, or no longer: its record mustn't vanish under it, nor stay for ever.
    local left = math.max(LINGER, 2000 * span)
    if m.native then set[#set + 1], set[#set + 2] = 'native', text(now + left / 1000) end
    many('HSET', state, set)
    set = {}
    call('PEXPIRE', state, whole(left))
  end
  many('HSET', state, set)
  wake(woken)
  if lease == '' then return {nowtext, 'held', m['turn:holder'], m['turn:since']} end
elseif ARGV[7] ~= '' and is_alive(m, now) and m.expires then
  local touch, set = tonumber(ARGV[7]), {}
  if tonumber(m.expires) - now < touch / 2 then
    set_expiry(m, now + touch, now, set)
    many('HSET', state, set)
  end
end

if not is_alive(m, now) then return {nowtext, lease} end

local tails, after = {}, 10 + 2 * tonumber(ARGV[10])
for i = 11, after, 2 do
  local raw, wanted = m['log:' .. ARGV[i]], tonumber(ARGV[i + 1])
  local items = {}
  if raw and wanted > 0 then
    local log = log_record(raw)
    items = call('LRANGE', key('log:' .. ARGV[i]), -wanted, -1)
    if #items ~= math.min(wanted, log.head - log.first + 1) then return {nowtext, 'damaged', 'log:' .. ARGV[i]} end
  end
  tails[#tails + 1] = items
end

local entries = {}
if tonumber(m.bytes) <= tonumber(ARGV[2]) then
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

if #entries == 0 and m.bytes ~= '0' and call('EXISTS', key('entries')) == 0 then
  return {nowtext, 'damaged', 'entries'}
end

local once = false
if ARGV[8] == '1' then once = call('HGET', key('once'), ARGV[9]) end
return {nowtext, lease, m.expires or '', flat, entries, tails, once}
