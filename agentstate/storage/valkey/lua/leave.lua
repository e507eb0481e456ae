-- Gives a turn back or leaves its line; keeps the record of a failed turn.
-- ARGV: now, nonce, '-' or '=' and the failure.
local FAILURE_COUNT, FAILURE_MILLISECONDS = 20, 604800000
local now, nowtext = clock(ARGV[1])
local m, set, woken = load(), {}, nil
local line = {}
for _, one in ipairs((line_of(m, now, nowtext))) do
  if one[1] ~= ARGV[2] then line[#line + 1] = one end
end

if m['turn:nonce'] == ARGV[2] then
  woken = pass_on(m, line, now, nowtext, set)
elseif m['turn:line'] then
  set = {'turn:line', line_text(line)}
end
many('HSET', state, set)
if not m.commit and not m.version and not m['turn:nonce'] then call('UNLINK', state) end

-- The call may come twice when its reply was lost.
local last = call('LINDEX', key('failures'), -1)
if ARGV[3] ~= '-' and not (last and match(last, '^%S+ (.*)$') == sub(ARGV[3], 2)) then
  call('RPUSH', key('failures'), nowtext .. ' ' .. sub(ARGV[3], 2))
  call('LTRIM', key('failures'), -FAILURE_COUNT, -1)
  call('PEXPIRE', key('failures'), FAILURE_MILLISECONDS)
end
wake(woken)
return 'ok'
