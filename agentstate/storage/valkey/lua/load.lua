-- Reading the record.
local function load()
  local flat = call('HGETALL', state)
  local m = {head = nil, turn = nil, line = nil, expires = nil, native = nil, owner = nil}
  for i = 1, #flat, 2 do m[flat[i]] = flat[i + 1] end
  return m, flat
end

local function is_held(m)
  local nonce, until_ = match(m.turn or '', '^(%d+) %d+ (%S+)')
  return nonce and tonumber(until_) > now
end
