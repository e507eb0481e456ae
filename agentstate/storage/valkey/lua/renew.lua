-- Needs: base tools load expiry line
-- Lengthens a turn that is still held, and the life of its state with it.
-- ARGV: now, nonce, seconds. Returns 1 when it is held.
local m, span, set = load(), tonumber(ARGV[3]), {}
local nonce, counter, _, since, holder = turn_of(m)
if nonce ~= ARGV[2] then return 0 end
set = {'turn', table.concat({nonce, counter, text(now + span), since, holder}, ' ')}
if is_alive(m) and m.expires then
  if tonumber(m.expires) < now + span then expiry().set(m, now + span, set) end
  many('HSET', state, set)
elseif not m.head or m.native then
  expiry().linger(m, span, set)
else
  many('HSET', state, set)
end
return 1
