-- Comes before every script. KEYS[1] is '<prefix>{<partition>}state:<address>'; all other keys have the
-- same tag and are made from it here, so a script never leaves its slot. Whatever could fail is found out
-- before the first write: a script that fails half-way keeps what it wrote. Counters are 64-bit integers
-- and Lua's numbers are doubles, so counters are only ever text here.
--
-- The state's record is a hash:
--   head     '<version>-<commit> <updated> <entry bytes> <birth> <created>'; not there when the state is absent
--   version  of a state that was dropped, for as long as a lease may live
--   turn     '<nonce> <counter> <until> <since> <holder>', or '0 <counter>' when nobody holds it
--   line     those who wait for the turn
--   expires, native, owner, parent, labels
--   section:<name>  '<stamp>'
--   log:<name>      '<stamp> <first> <head> <next seq> <bytes>'
--
-- Every run of a script makes its functions anew, and what they take from outside. So the two scripts of a turn
-- have next to none, and take those for rarer things in where these are found ('-- Here: <parts>').
local call, sub, find, match, format = redis.call, string.sub, string.find, string.match, string.format

local state = KEYS[1]
local tag = find(state, '}state:', 1, true)
local base, address = sub(state, 1, tag), sub(state, tag + 7)

local function key(kind) return base .. kind .. ':' .. address end

local nowtext = ARGV[1]
if nowtext == '' then
  local time = call('TIME')
  nowtext = format('%s.%06d', time[1], time[2])
end
local now = tonumber(nowtext)
