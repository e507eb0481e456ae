-- Needs: base tools load line
-- Gives a turn back or leaves its line; keeps the record of a failed turn.
-- ARGV: now, nonce, and for a failure its token and bytes.
local FAILURE_COUNT, FAILURE_MILLISECONDS = 20, 604800000
local m, set, woken, waiters = load(), {}, nil, waiting()
local line = {}
for _, one in ipairs((waiters.line_of(m))) do
  if one[1] ~= ARGV[2] then line[#line + 1] = one end
end

if ARGV[2] ~= '0' and turn_of(m) == ARGV[2] then
  woken = waiters.pass_on(m, line, set)
else
  waiters.set_line(m, line, set)
end
many('HSET', state, set)
if not m.head and not m.version and turn_of(m) == '0' then call('UNLINK', state) end

-- The call comes twice when its reply was lost: hence the token.
local last = ARGV[3] and call('LINDEX', key('failures'), -1)
if ARGV[3] and not (last and match(last, '^%S+ (%S+)') == ARGV[3]) then
  call('RPUSH', key('failures'), nowtext .. ' ' .. ARGV[3] .. ' ' .. ARGV[4])
  call('LTRIM', key('failures'), -FAILURE_COUNT, -1)
  call('PEXPIRE', key('failures'), FAILURE_MILLISECONDS)
end
waiters.wake(woken)
return 'ok'
