-- Removes a living state whose turn nobody holds. ARGV: now, '*' or the stamp it must have.
local now, nowtext = clock(ARGV[1])
local m = load()
if not is_alive(m, now) or is_held(m, now) then return 0 end
if ARGV[2] ~= '*' and ARGV[2] ~= m.version .. '-' .. m.commit then return 0 end
bury(m, nowtext)
return 1
