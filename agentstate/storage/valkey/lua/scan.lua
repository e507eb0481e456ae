-- Needs: base tools load records
-- Reads a page of a section's living entries in the order of their keys.
-- ARGV: now, the range's first and last field, limit. Returns fields, values and stamps, and 1 when there is more.
local m, found, limit = load(), {}, tonumber(ARGV[4])
local low = ARGV[2]
if not is_alive(m) then return {found, 0} end
while true do
  local fields = call('ZRANGEBYLEX', key('keys'), low, ARGV[3], 'LIMIT', 0, limit + 1)
  for _, field in ipairs(fields) do
    local pair = call('HMGET', key('entries'), field, '#' .. field)
    if pair[2] and entry_record(pair[2]).live then
      if #found == 3 * limit then return {found, 1} end
      local n = #found
      found[n + 1], found[n + 2], found[n + 3] = field, pair[1], pair[2]
    end
  end
  if #fields <= limit then return {found, 0} end
  low = '(' .. fields[#fields]
end
