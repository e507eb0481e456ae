-- Needs: base load index expiry remove
-- Removes a living state whose turn nobody holds. ARGV: now, '*' or the stamp it must have.
local m = load()
if not is_alive(m) or is_held(m) then return 0 end
local version, commit = match(m.head, '^(%d+) (%x+)')
if ARGV[2] ~= '*' and ARGV[2] ~= version .. '-' .. commit then return 0 end
removal().bury(m)
return 1
