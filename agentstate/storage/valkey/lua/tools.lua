-- What most scripts use.
local LINGER = 3600000

-- Times are kept as text that reads back as exactly the same double.
local function text(seconds)
  local short = format('%.6f', seconds)
  if tonumber(short) == seconds then return short end
  return format('%.17g', seconds)
end

-- `unpack` has a limit, so long argument lists go in pieces (of even length, for pairs).
local CHUNK = 1000
local function many(command, target, list)
  for start = 1, #list, CHUNK do
    call(command, target, unpack(list, start, math.min(start + CHUNK - 1, #list)))
  end
end

local function is_alive(m)
  return m.head and (not m.expires or tonumber(m.expires) > now)
end
