-- Needs: base tools
-- Reads what failed turns left. ARGV: now. Returns now and the records.
return {nowtext, call('LRANGE', key('failures'), 0, -1)}
