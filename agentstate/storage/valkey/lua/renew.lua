-- Lengthens a turn that is still held, and the life of its state with it.
-- ARGV: now, nonce, seconds. Returns 1 when it is held.
local now = clock(ARGV[1])
local m, span, set = load(), tonumber(ARGV[3]), {}
if m['turn:nonce'] ~= ARGV[2] then return 0 end
set = {'turn:until', text(now + span)}
if is_alive(m, now) and m.expires then
  if tonumber(m.expires) < now + span then set_expiry(m, now + span, now, set) end
elseif not m.commit or m.native then
  local left = math.max(LINGER, 2000 * span)
  if m.native then set[3], set[4] = 'native', text(now + left / 1000) end
  call('PEXPIRE', state, whole(left))
end
many('HSET', state, set)
return 1
