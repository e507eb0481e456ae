-- Reads what failed turns left. ARGV: now. Returns now and the records.
local _, nowtext = clock(ARGV[1])
return {nowtext, call('LRANGE', key('failures'), 0, -1)}
