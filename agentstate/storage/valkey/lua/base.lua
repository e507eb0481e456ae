-- Comes before every script. KEYS[1] is '<prefix>{<partition>}state:<address>'; all other keys have the
-- same tag and are made from it here, so a script never leaves its slot. Whatever could fail is found out
-- before the first write: a script that fails half-way keeps what it wrote. Counters are 64-bit integers
-- and Lua's numbers are doubles, so counters are only ever text here.
--
-- The state's record is a hash:
--   head     '<version>-<commit> <updated> <entry bytes>'; not there when the state is absent
--   born     '<birth> <created>'
--   version  of a state that was dropped, for as long as a lease may live
--   turn     '<nonce> <counter> <until> <since>', or '0 <counter>' when nobody holds it; holder says who
--   line     those who wait for the turn
--   expires, native, known, owner, parent, labels
--   section:<name>  '<stamp>'
--   log:<name>      '<first> <head> <next seq> <bytes> <stamp>'
-- Values of 64 bytes and less keep a hash compact.
--
-- Every script run makes its functions anew, so what is rarely needed hides in a function that makes it.
local call, sub, find, match, format = redis.call, string.sub, string.find, string.match, string.format
local CHUNK, LINGER = 1000, 3600000

local state = KEYS[1]
local tag = find(state, '}state:', 1, true)
local base, address = sub(state, 1, tag), sub(state, tag + 7)

local function key(kind) return base .. kind .. ':' .. address end

-- Times are kept as text that reads back as exactly the same double.
local function text(seconds)
  local short = format('%.6f', seconds)
  if tonumber(short) == seconds then return short end
  return format('%.17g', seconds)
end

local now, nowtext
if ARGV[1] == '' then
  local time = call('TIME')
  nowtext = format('%s.%06d', time[1], time[2])
else
  nowtext = ARGV[1]
end
now = tonumber(nowtext)

-- `unpack` has a limit, so long argument lists go in pieces (of even length, for pairs).
local function many(command, target, list)
  for start = 1, #list, CHUNK do
    call(command, target, unpack(list, start, math.min(start + CHUNK - 1, #list)))
  end
end

local function is_alive(m)
  return m.head and (not m.expires or tonumber(m.expires) > now)
end
