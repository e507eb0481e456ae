-- Needs: base
-- Changes one state, all or nothing: everything is looked at, and then everything is written. What is written
-- without having been read is asked for its length, so that a key of another type stops the script before.
--
-- ARGV: now, '1' when sent again, commit, birth, base, nonce, options, ttl, and the numbers of logs, conditions,
-- entries, puts, sections and bytes put. Then, each list where it stands:
--   logs' fields; the fields with conditions, and their stamps
--   the entries' '#' fields, first of those that are put, and their stamps, '' when it doesn't matter
--   '<bytes> <kind><ttl>' and value of each put; the fields of the sections they are in
--   what `changes` reads, with option 'x'
--   number and bytes of each log's new items, and these: '<u><%><ttl or -> <id> <value>'
--   the journal's record, with option 'j'
-- Other options: 'r' gives the turn back, 's' says that the ttl slides, 'o' that some have an own ttl or unique id,
-- 'm' that there are many of something.
--
-- Returns '<version> <birth> <expires or ->', of each log its '<first> <head> <next seq> <bytes>' or '-', and
-- the sums of counters; '-' when the state was dropped; a list when the commit was refused.
local KNOWN_COUNT, KNOWN_SECONDS, JOURNAL_COUNT, JOURNAL_SPARE, RECORD_FIELDS = 32, 30, 1000, 100, 8
local commit, birth, nonce, options, ttl = ARGV[3], ARGV[4], ARGV[6], ARGV[7], ARGV[8]
local log_count, condition_count, entry_count = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local put_count, section_count = tonumber(ARGV[12]), tonumber(ARGV[13])

-- Where the lists begin, less one.
local conditions = 14 + log_count
local wanted = conditions + condition_count
local fields = wanted + condition_count
local stamps = fields + entry_count
local puts = stamps + entry_count
local sections = puts + 2 * put_count
local taken = sections + section_count

-- A commit that was sent a second time, because its reply was lost, is done once: the commits of at
-- least the last 30 seconds are known, as '<version> <what was replied of logs and counters>' or '-', in two
-- generations.
local known = key('known')
local done, since, before = unpack(call('HMGET', known, commit, 'since', 'before'))
since = tonumber(since)
if before and not done and (ARGV[2] == '1' or now - since < KNOWN_SECONDS) then
  done = call('HGET', key('known-before'), commit)
end
if done then
  local made, rest = match(done, '^(%d+)(.*)$')
  local record = call('HMGET', state, 'head', 'expires')
  return made and made .. ' ' .. match(record[1] or '0 ', '(%x+) %S*$') .. ' ' .. (record[2] or '-') .. rest or done
end

local record = call('HMGET', state, 'head', 'turn', 'line', 'expires', 'native', 'version', 'owner', 'labels',
  unpack(ARGV, 15, wanted))
local head, line, expires = record[1], record[3], record[4]
local holder, counter = match(record[2] or '0 0', '^(%d+) (%d+)')
if nonce ~= '' and holder ~= nonce then return {'lost'} end
local version, suffix, bytes, origin, born = record[6] or '0', nil, 0, nil, nil
if head then
  version, suffix, bytes, origin, born = match(head, '^(%d+)(%-%x+) %S+ (%d+) ((%x+) %S+)$')
  assert(version, 'the head is no head')
end
local alive = head and (not expires or tonumber(expires) > now or (nonce ~= '' and birth == born))
if birth ~= '*' and birth ~= (alive and born or '-') then return {'conflict', 'birth', alive and born or '-'} end
if ARGV[5] ~= '*' and ARGV[5] ~= (alive and version .. suffix or '-') then
  return {'conflict', 'base', alive and version .. suffix or '-'}
end
for i = 1, condition_count do
  local found = alive and record[RECORD_FIELDS + log_count + i] or '-'
  if find(found, ARGV[wanted + i], 1, true) ~= 1 then
    return {'conflict', 'field', match(found, '^%S+'), ARGV[conditions + i]}
  end
end

-- A new generation of known commits begins when this one holds 32 and is 30 seconds old.
local aged = not since or (now - since >= KNOWN_SECONDS and call('HLEN', known) > KNOWN_COUNT + 1)
-- A lifetime that slides needs no more than a new end, as long as the engine's own expiry is far off.
local native = tonumber(record[5])
local slides = expires and native and tonumber(ttl) and find(options, 's', 1, true) and native >= now + 1.5 * ttl
local rare = aged or not alive or not (slides or ttl == 'k') or (line or '') ~= '' or record[8]
  or find(options, '[xom]')
for i = 1, log_count do rare = rare or not record[RECORD_FIELDS + i] end
if rare then
  -- Here: tools records index expiry remove line changes whole
end

-- From here on: what nearly all commits are, entries and new items at the end of logs, to a living state.
if slides then
  expires = format('%.6f', now + ttl)
  if tonumber(expires) ~= now + ttl then expires = format('%.17g', now + ttl) end
  call('ZCARD', base .. 'expiry')
end
local entries, old, some = key('entries'), {}, entry_count == 0 or bytes == '0'
if entry_count > 0 then old = call('HMGET', entries, unpack(ARGV, fields + 1, fields + entry_count)) end
for i = 1, entry_count do
  local raw = old[i] or '-'
  some = some or old[i]
  -- What has expired is here still and reads as absent.
  if sub(raw, -1) ~= 'v' and (tonumber(match(raw, '[vn](.*)$')) or now + 1) <= now then raw = '-' end
  if find(raw, ARGV[stamps + i], 1, true) ~= 1 then return {'conflict', 'entry', match(raw, '^%S+'), i .. ''} end
end
if not some and call('EXISTS', entries) == 0 then return {'damaged', 'entries'} end

version = version + 1 .. ''
local stamp, values, named = version .. '-' .. commit, {}, nil
for i = 1, put_count do
  local field, n = ARGV[fields + i], 4 * i
  local plain = sub(field, 2)
  if old[i] then
    bytes = bytes - match(old[i], ' (%d+) [vn]')
  else
    named = named or {}
    named[#named + 1], named[#named + 2] = 0, plain
  end
  values[n - 3], values[n - 2] = field, stamp .. ' ' .. ARGV[puts + 2 * i - 1]
  values[n - 1], values[n] = plain, ARGV[puts + 2 * i]
end
if named then call('ZCARD', key('keys')) end

local set = {'head', stamp .. ' ' .. nowtext .. ' ' .. bytes + ARGV[14] .. ' ' .. origin}
if nonce ~= '' and find(options, 'r', 1, true) then set[3], set[4] = 'turn', '0 ' .. counter end
if slides then set[#set + 1], set[#set + 2] = 'expires', expires end
for i = sections + 1, sections + section_count do set[#set + 1], set[#set + 2] = ARGV[i], stamp end

local items, ranges, places = {}, '', ''
for i = 1, log_count do
  local field, count, added = ARGV[14 + i], ARGV[taken + 1], {}
  local first, last, seq, size = match(record[RECORD_FIELDS + i], '^%S+ (%d+) (%d+) (%d+) (%d+)$')
  if call('LLEN', key(field)) ~= last - first + 1 then return {'damaged', field} end
  local next_seq = seq + count
  for j = 1, count do added[j] = seq + j - 1 .. ' ' .. ARGV[taken + 2 + j] end
  local place = first .. ' ' .. last + count .. ' ' .. next_seq .. ' ' .. size + ARGV[taken + 2]
  set[#set + 1], set[#set + 2] = field, stamp .. ' ' .. place
  items[i], places = added, places .. ' ' .. place
  ranges = ranges .. ' ' .. sub(field, 5) .. ' ' .. seq .. ' ' .. next_seq - 1
  taken = taken + 2 + count
end

local journal = key('journal')
local journaled = find(options, 'j', 1, true) and call('LLEN', journal)

-- Now everything is written. The indexes and the feed were not read; a time that stays there alone does no harm.
local tenant, body = '', address
if sub(address, 1, 1) == '@' then tenant, body = match(address, '^@([^/]*)/(.*)$') end
call('ZADD', base .. 'by-time:kind:' .. tenant .. ':' .. match(body, '^%a+'), nowtext, body)
if record[7] then call('ZADD', base .. 'by-time:owner:' .. tenant .. ':' .. record[7], nowtext, body) end
call('XADD', base .. 'feed', 'MAXLEN', '~', '2000', '*', 'is', stamp .. ' ' .. nowtext .. ' ' .. address)
if slides then call('ZADD', base .. 'expiry', expires, 'scope\0' .. address) end
if put_count > 0 then call('HSET', entries, unpack(values)) end
if named then call('ZADD', key('keys'), unpack(named)) end
for i = 1, log_count do call('RPUSH', key(ARGV[14 + i]), unpack(items[i])) end
if journaled then
  call('RPUSH', journal, stamp .. ' ' .. nowtext .. ' 0' .. ranges .. '\n' .. ARGV[#ARGV])
  if journaled >= JOURNAL_COUNT + JOURNAL_SPARE then call('LTRIM', journal, -JOURNAL_COUNT, -1) end
end
call('HSET', known, commit, version .. places)
call('HSET', state, unpack(set))
return version .. ' ' .. born .. ' ' .. (expires or '-') .. places
