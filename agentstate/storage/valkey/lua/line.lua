-- The turn of a state, and the line of those who wait for it.

local function turn_of(m)
  local nonce, counter, until_, since = match(m.turn or '0 0', '^(%d+) (%d+) ?(%S*) ?(%S*)$')
  return nonce, counter, until_, since
end

-- Returns the lease's counter and end.
local function hold(m, nonce, holder, span, set)
  local before, counter = turn_of(m)
  if before ~= nonce then counter = counter + 1 end
  local lease = counter .. ' ' .. text(now + span)
  m.turn, m.holder = nonce .. ' ' .. lease .. ' ' .. nowtext, holder
  local n = #set
  set[n + 1], set[n + 2], set[n + 3], set[n + 4] = 'turn', m.turn, 'holder', holder
  return lease
end

local function waiting()
  local GONE_SECONDS, CLAIM_SECONDS = 1, 1
  local self = {}

  -- '<nonce> <seen> <channel> <holder>\n' each, first come first. Who hasn't been seen for a second has
  -- gone; `asker` is here now.
  function self.line_of(m, asker)
    local line, here = {}, false
    for nonce, seen, channel, holder in string.gmatch(m.line or '', '(%d+) (%S+) (%S+) ([^\n]*)\n') do
      if nonce == asker then seen, here = nowtext, true end
      if tonumber(seen) + GONE_SECONDS > now then line[#line + 1] = {nonce, seen, channel, holder} end
    end
    return line, here
  end

  function self.set_line(m, line, set)
    local all = {}
    for i, one in ipairs(line) do all[i] = table.concat(one, ' ') .. '\n' end
    local said = table.concat(all)
    if said ~= (m.line or '') then
      m.line = said
      set[#set + 1], set[#set + 2] = 'line', said
    end
  end

  -- The turn goes to the first in line, who has a second to claim it, or to nobody.
  -- Returns whom to wake, for when everything is written.
  function self.pass_on(m, line, set)
    local first = table.remove(line, 1)
    if first then
      hold(m, first[1], first[4], CLAIM_SECONDS, set)
    else
      local _, counter = turn_of(m)
      m.turn = '0 ' .. counter
      set[#set + 1], set[#set + 2] = 'turn', m.turn
    end
    self.set_line(m, line, set)
    return first
  end

  -- Waking is a courtesy, for those who wait also poll: a user without the right to publish loses nothing else.
  function self.wake(one)
    if one and one[3] ~= '-' then redis.pcall('PUBLISH', one[3], one[1]) end
  end

  return self
end
