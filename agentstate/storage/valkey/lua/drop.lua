-- Needs: base tools load index expiry remove
-- Removes a living state whose turn nobody holds. ARGV: now, '*' or the stamp it must have.
local m = load()
if not is_alive(m) or is_held(m) then return 0 end
if ARGV[2] ~= '*' and ARGV[2] ~= match(m.head, '^%S+') then return 0 end
removal().bury(m)
return 1
