-- Reads commits after a version. ARGV: now, version, limit.
local now = clock(ARGV[1])
if not is_alive(load(), now) then return {} end
return call('XRANGE', key('journal'), whole(tonumber(ARGV[2]) + 1) .. '-0', '+', 'COUNT', ARGV[3])
