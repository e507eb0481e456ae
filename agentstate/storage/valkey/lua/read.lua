-- Needs: base
-- Reads a state, taking its turn on the way. Writes only when all was read.
-- ARGV: now, inline bytes, nonce, lease seconds, holder, channel, touch, '=' and the once key, number of tails,
--       then log and length of each, then the wanted entries' '#' fields.
-- Returns {'held', now, since, holder}, {'damaged', what}, {about} when the state is absent, or
-- {about, record, entries, once, tail, …}, where about is '<now> <expires or -> <lease's counter> <end>'.
local flat, m = call('HGETALL', state), {head = false, turn = false, line = '', expires = false, native = false}
for i = 1, #flat, 2 do m[flat[i]] = flat[i + 1] end
local expires = tonumber(m.expires)
local alive = m.head and (not expires or expires > now)
if not alive then expires = nil end
local nonce, touch, later, set, lease, held, woken = ARGV[3], tonumber(ARGV[7]), expires, {}, '', nil, nil
if expires and touch and expires - now < touch / 2 then later = now + touch end

if nonce ~= '' then
  local before, counter, until_, since, holder = match(m.turn or '0 0', '^(%d+) (%d+) ?(%S*) ?(%S*) ?(.*)$')
  local mine, stop = before == nonce, now + ARGV[4]
  local free = mine or until_ == '' or tonumber(until_) <= now
  if not free or m.line ~= '' then
    -- Here: tools line
    local waiters = waiting()
    local line, here = waiters.line_of(m, nonce)
    if not mine and free and (not line[1] or line[1][1] == nonce) then
      table.remove(line, 1)
    elseif not mine then
      if not here then line[#line + 1] = {nonce, nowtext, ARGV[6], ARGV[5]} end
      if free then woken = waiters.pass_on(m, line, set) end
      before, counter, until_, since, holder = turn_of(m)
      held = {'held', nowtext, since, holder}
    end
    waiters.set_line(m, line, set)
  end
  if not held then
    if not mine then counter = counter + 1 end
    until_ = format('%.6f', stop)
    if tonumber(until_) ~= stop then until_ = format('%.17g', stop) end
    lease = counter .. ' ' .. until_
    set[#set + 1], set[#set + 2] = 'turn', nonce .. ' ' .. lease .. ' ' .. nowtext .. ' ' .. ARGV[5]
    if expires and later < stop then later = stop end
  end
end

local reply = held or {'', flat, {}, false}
if alive and not held then
  local last = 9 + 2 * ARGV[9]
  for i = 10, last, 2 do
    local raw, wanted, items = m['log:' .. ARGV[i]], tonumber(ARGV[i + 1]), {}
    if raw and wanted > 0 then
      local first, head = match(raw, '^%S+ (%d+) (%d+)')
      items = call('LRANGE', key('log:' .. ARGV[i]), -wanted, -1)
      if #items ~= math.min(wanted, head - first + 1) then return {'damaged', 'log:' .. ARGV[i]} end
    end
    reply[#reply + 1] = items
  end
  local size = tonumber(match(m.head, '^%S+ %S+ (%d+)'))
  local entries = key('entries')
  if size <= tonumber(ARGV[2]) then
    reply[3] = call('HGETALL', entries)
  else
    local found = reply[3]
    for i = last + 1, #ARGV do
      local plain = sub(ARGV[i], 2)
      local pair = call('HMGET', entries, plain, ARGV[i])
      if pair[2] then
        local n = #found
        found[n + 1], found[n + 2], found[n + 3], found[n + 4] = plain, pair[1], ARGV[i], pair[2]
      end
    end
  end
  if size > 0 and not reply[3][1] and call('EXISTS', entries) == 0 then return {'damaged', 'entries'} end
  if ARGV[8] ~= '' then reply[4] = call('HGET', key('once'), sub(ARGV[8], 2)) end
end

if later ~= expires or (nonce ~= '' and (not m.head or m.native)) then
  -- Here: tools expiry
  if later ~= expires then expiry().set(m, later, set) end
  if nonce ~= '' and (not m.head or (m.native and not expires)) then
    expiry().linger(m, tonumber(ARGV[4]), set)
  else
    many('HSET', state, set)
  end
elseif set[1] then
  call('HSET', state, unpack(set))
end
if woken and woken[3] ~= '-' then redis.pcall('PUBLISH', woken[3], woken[1]) end
if held then return held end
if not alive then return {nowtext .. ' - ' .. lease} end
reply[1] = nowtext .. ' ' .. (m.expires or '-') .. ' ' .. lease
return reply
