-- Needs: base tools load records
-- Reads a page of a log. ARGV: now, log, start, end, limit (each may be '').
-- Returns the log's record, the first item's position, the items, and now; or nothing when it is absent.
local m = load()
local raw = is_alive(m) and m['log:' .. ARGV[2]]
if not raw then return {} end
local log, start, stop, limit = log_record(raw), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local low, high = start or log.first, stop or log.head + 1
if limit and start then
  high = math.min(high, math.max(low, log.first) + limit)
elseif limit then
  low = math.max(low, math.min(high, log.head + 1) - limit)
end
low, high = math.max(low, log.first), math.min(high, log.head + 1)
local items = {}
if low < high then
  items = call('LRANGE', key('log:' .. ARGV[2]), low - log.first, high - 1 - log.first)
  if #items ~= high - low then return {'damaged', 'log:' .. ARGV[2]} end
end
return {raw, format('%.0f', low), items, nowtext}
