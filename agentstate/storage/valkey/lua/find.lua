-- Needs: base tools load records
-- Finds an item by its unique id. ARGV: now, log, id. Returns its position, itself, and now; or nothing.
local m = load()
local raw = is_alive(m) and m['log:' .. ARGV[2]]
local at = raw and call('HGET', key('unique:' .. ARGV[2]), ARGV[3])
if not at then return {} end
local position = match(at, '^%d+')
local item = call('LINDEX', key('log:' .. ARGV[2]), tonumber(position) - log_record(raw).first)
if not item then return {'damaged', 'log:' .. ARGV[2]} end
return {position, item, nowtext}
