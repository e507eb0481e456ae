-- Needs: base tools load
-- Reads commits after a version. ARGV: now, version, limit.
if not is_alive((load())) then return {} end
local journal, after = key('journal'), tonumber(ARGV[2])
local low, high = 0, call('LLEN', journal)
while low < high do
  local middle = math.floor((low + high) / 2)
  if tonumber(match(call('LINDEX', journal, middle), '^%d+')) > after then high = middle else low = middle + 1 end
end
return call('LRANGE', journal, low, low + ARGV[3] - 1)
