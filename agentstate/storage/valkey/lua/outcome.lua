-- Needs: base tools
-- Says which version a commit made. ARGV: now, commit.
local done = call('HGET', key('known'), ARGV[2]) or call('HGET', key('known-before'), ARGV[2])
if done then return match(done, '^%S+') end
local last = -1
while true do
  local records = call('LRANGE', key('journal'), last - 49, last)
  for _, one in ipairs(records) do
    local version, commit = match(one, '^(%d+)%-(%x+) ')
    if commit == ARGV[2] then return version end
  end
  if #records < 50 then return false end
  last = last - 50
end
