-- Needs: base tools load line
-- Keeps a waiter in line, and says whether it is worth reading again for the turn.
-- ARGV: now, nonce. Returns 'go', or the seconds until the holder's lease ends.
local m, set, waiters = load(), {}, waiting()
local nonce, _, until_ = turn_of(m)
if not is_held(m) or nonce == ARGV[2] then return 'go' end
local line, here = waiters.line_of(m, ARGV[2])
if not here then return 'go' end
waiters.set_line(m, line, set)
many('HSET', state, set)
return text(tonumber(until_) - now)
