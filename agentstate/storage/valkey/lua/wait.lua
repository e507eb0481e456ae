-- Keeps a waiter in line, and says whether it is worth reading again for the turn.
-- ARGV: now, nonce. Returns 'go', or the seconds until the holder's lease ends.
local now, nowtext = clock(ARGV[1])
local m = load()
if (m['turn:nonce'] or '') == '' or m['turn:nonce'] == ARGV[2] or not is_held(m, now) then return 'go' end
local line, here = line_of(m, now, nowtext, ARGV[2])
if not here then return 'go' end
call('HSET', state, 'turn:line', line_text(line))
return text(tonumber(m['turn:until']) - now)
