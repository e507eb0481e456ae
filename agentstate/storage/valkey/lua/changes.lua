-- The rarer parts of a commit: what clears, counts, deletes, cuts, trims, edits, and is done once.
local function changes()
  local ONCE_COUNT, ONCE_SECONDS = 1000, 86400
  local self = {}

  -- Returns what stands in ARGV after `taken`, and where it ends.
  function self.read(taken, log_count)
    local function word()
      taken = taken + 1
      return ARGV[taken]
    end
    local function list(make)
      local found = {}
      for i = 1, tonumber(word()) do found[i] = make() end
      return found
    end
    local more = {clear = word() == '1', owner = word(), parent = word(), labels = word(), logs = {}}
    if word() == '1' then more.once = {key = word(), value = word()} end
    if word() == '1' then more.kept = {version = tonumber(word()), created = word(), updated = word()} end
    more.deletes = list(function() return tonumber(word()) end)
    more.increments = list(function() return {at = tonumber(word()), size = word(), by = word()} end)
    for i = 1, log_count do
      more.logs[i] = {cut = tonumber(word()), trim = tonumber(word()), first = tonumber(word()), edits = list(function()
        return {position = tonumber(word()), seq = word(), value = word()}
      end)}
    end
    return more, taken
  end

  -- Returns why a commit is refused. Takes note of the counters that are there.
  function self.refusal(more, alive, old, by_time)
    if more.once then
      local raw = call('HGET', key('once'), more.once.key)
      if alive and raw and tonumber(match(raw, '^%S+')) > now - ONCE_SECONDS then return {'conflict', 'once', '-'} end
      call('ZCARD', key('once-times'))
    end
    local deleted = {}
    for _, at in ipairs(more.deletes) do deleted[at] = true end
    for _, one in ipairs(more.increments) do
      local raw = not more.clear and not deleted[one.at] and old[one.at]
      local entry = raw and entry_record(raw)
      if entry and entry.live then
        if entry.kind ~= 'n' then return {'no counter', one.at .. ''} end
        one.old = entry
      end
    end
    if #more.increments > 0 then
      call('ZCARD', by_time)
      call('XLEN', base .. 'feed')
    end
  end

  -- What cuts and trims of a log remove: '{raw, position, item}' each. Read now, since nonsense can't be written over.
  function self.removed(log, change)
    local found, head = {}, log.head
    local function take(first, last)
      for j, raw in ipairs(call('LRANGE', log.list, first - log.first, last - log.first)) do
        found[#found + 1] = {raw, first + j - 1, item_record(raw)}
      end
    end
    if change.cut and change.cut <= head then
      change.cut_from = math.max(change.cut, log.first)
      if change.cut_from <= head then take(change.cut_from, head) end
      head = change.cut_from - 1
    end
    if change.trim and change.trim > log.first and log.first <= head then
      change.trim_to = math.min(change.trim, head + 1)
      take(log.first, change.trim_to - 1)
    end
    return found
  end

  -- Reads what a log loses; returns why that is refused.
  function self.look_at(log, change)
    for _, edit in ipairs(change.edits) do
      local position, item = edit.position, nil
      if log.stored and position >= math.max(log.first, change.trim or 0)
        and position <= math.min(log.head, (change.cut or math.huge) - 1) then
        edit.raw = call('LINDEX', log.list, position - log.first)
        item = item_record(edit.raw)
      end
      if not item or item.seq ~= edit.seq then
        return {'edited', log.field, position .. '', item and item.seq or '-'}
      end
      edit.new, edit.more = item.head .. edit.value, #edit.value - item.size
    end
    if log.stored and (change.cut or change.trim) then change.gone = self.removed(log, change) end
    log.change = change
  end

  -- Cuts, trims and edits a log; returns whether it has changed.
  function self.reduce(log, removed)
    local list, change, name = log.list, log.change, sub(log.field, 5)
    local function note(raw, position)
      removed[#removed + 1] = name .. ' ' .. position .. ' ' .. #raw .. '\n' .. raw
    end
    for _, one in ipairs(change.gone or {}) do
      local raw, position, item = one[1], one[2], one[3]
      log.size = log.size - item.size
      note(raw, position)
      local at = item.unique and call('HGET', key('unique:' .. name), item.id)
      if at and match(at, '%d+$') == item.seq then call('HDEL', key('unique:' .. name), item.id) end
    end
    local from = change.cut_from
    if from then
      if from == log.first then call('UNLINK', list) else call('LTRIM', list, 0, from - log.first - 1) end
      log.head = from - 1
    end
    if change.trim_to then
      call('LTRIM', list, change.trim_to - log.first, -1)
      log.first = change.trim_to
    end
    for _, edit in ipairs(change.edits) do
      call('LSET', list, edit.position - log.first, edit.new)
      log.size = log.size + edit.more
      note(edit.raw, edit.position)
    end
    return #change.edits > 0 or (change.gone and #change.gone > 0)
  end

  -- Returns a new item as it is stored; nothing when it has a unique id that is there already.
  function self.item(log, item)
    if sub(item, 1, 2) == '- ' then return item end
    local unique, escaped, ttl, id, rest = match(item, '^(u?)(%%?)(%S+) (%S*)( .*)$')
    local name, expires = sub(log.field, 5), '-'
    local ids = unique == 'u' and key('unique:' .. name)
    if ids and call('HEXISTS', ids, id) == 1 then
      log.size = log.size + 1 - #rest
      return nil
    end
    if ttl ~= '-' then
      expires = text(now + ttl)
      call('ZADD', base .. 'expiry', expires, table.concat({'item', address, name, log.head + 1, log.next}, '\0'))
    end
    if ids then call('HSET', ids, id, log.head + 1 .. ' ' .. log.next) end
    return unique .. escaped .. expires .. ' ' .. id .. rest
  end

  -- Adds to counters, before anything else is written: it may overflow, and is then taken back.
  -- Returns the sums, or nothing and why not.
  function self.add(increments, fields)
    local entries, sums = key('entries'), {}
    for i, one in ipairs(increments) do
      local field = sub(ARGV[fields + one.at], 2)
      local sum = one.old and redis.pcall('HINCRBY', entries, field, one.by)
      if type(sum) == 'table' then
        for j = i - 1, 1, -1 do self.take_back(increments[j], entries, fields) end
        if find(sum.err, 'overflow', 1, true) then sum = {'overflow', one.at .. ''} end
        return nil, sum
      end
      sums[i] = one.old and call('HGET', entries, field) or one.by
    end
    return sums
  end

  function self.take_back(one, entries, fields)
    if not one.old then return end
    local field, by = sub(ARGV[fields + one.at], 2), one.by
    if by == '-9223372036854775808' then
      call('HINCRBY', entries, field, '9223372036854775807')
      by = '-1'
    end
    call('HINCRBY', entries, field, sub(by, 1, 1) == '-' and sub(by, 2) or '-' .. by)
  end

  -- Deletes entries; returns the fields of the sections that held them.
  function self.delete(gone)
    local plain, sections = {}, {}
    for i, field in ipairs(gone) do
      plain[i] = sub(field, 2)
      sections['section:' .. match(field, '^#([^/]*)')] = true
    end
    many('HDEL', key('entries'), gone)
    many('HDEL', key('entries'), plain)
    many('ZREM', key('keys'), plain)
    return sections
  end

  local function said(m, more, field)
    local new = more[field]
    if not new or new == 'k' then return m[field] end
    return new ~= '-' and sub(new, 2) or nil
  end

  -- Asks for the indexes by owner and label, those that go and those that come.
  function self.look_at_indexes(m, more)
    local names = views(said(m, more, 'owner'), said(m, more, 'labels'))
    for _, name in ipairs(views(m.owner, m.labels)) do names[#names + 1] = name end
    for _, name in ipairs(names) do
      call('ZCARD', base .. 'by-id:' .. name)
      call('ZCARD', base .. 'by-time:' .. name)
    end
  end

  -- Sets owner, parent and labels, and the indexes by owner and label.
  function self.describe(m, more, put)
    local lost, listed = views(m.owner, m.labels), {}
    for _, field in ipairs({'owner', 'parent', 'labels'}) do
      if more[field] ~= 'k' then
        m[field] = said(m, more, field)
        if m[field] then put(field, m[field]) else call('HDEL', state, field) end
      end
    end
    for _, name in ipairs(views(m.owner, m.labels)) do
      listed[name] = true
      call('ZADD', base .. 'by-id:' .. name, 0, body)
    end
    for i = #lost, 1, -1 do
      if listed[lost[i]] then table.remove(lost, i) end
    end
    removal().unlist_views(lost)
  end

  function self.keep_once(once)
    local known, times = key('once'), key('once-times')
    call('HSET', known, once.key, nowtext .. ' ' .. once.value)
    call('ZADD', times, nowtext, once.key)
    local stale = call('ZRANGEBYSCORE', times, '-inf', text(now - ONCE_SECONDS))
    if #stale == 0 then stale = call('ZRANGE', times, 0, -1 - ONCE_COUNT) end
    many('HDEL', known, stale)
    many('ZREM', times, stale)
  end

  return self
end
