-- Needs: base load
-- Reads commits after a version. ARGV: now, version, limit.
if not is_alive((load())) then return {} end
return call('XRANGE', key('journal'), format('%.0f', ARGV[2] + 1) .. '-0', '+', 'COUNT', ARGV[3])
