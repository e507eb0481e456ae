-- Needs: base
-- Says which version a commit made. ARGV: now, commit.
local done = call('HGET', key('known'), ARGV[2]) or call('HGET', key('known-before'), ARGV[2])
if done then return match(done, '^%S+') end
local newest = '+'
while true do
  local records = call('XREVRANGE', key('journal'), newest, '-', 'COUNT', 50)
  for _, one in ipairs(records) do
    if match(one[2][2], '^%x+') == ARGV[2] then return match(one[1], '^%d+') end
  end
  if #records < 50 then return false end
  newest = '(' .. records[#records][1]
end
