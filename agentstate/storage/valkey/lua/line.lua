-- The turn of a state, and the line of those who wait for it.

local function turn_of(m)
  return match(m.turn or '0 0', '^(%d+) (%d+) ?(%S*) ?(%S*) ?(.*)$')
end

-- Returns the turn's new record, and the lease's counter and end.
local function held_by(nonce, holder, span, before, counter)
  if before ~= nonce then counter = counter + 1 end
  local lease = counter .. ' ' .. text(now + span)
  return nonce .. ' ' .. lease .. ' ' .. nowtext .. ' ' .. holder, lease
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
    local before, counter = turn_of(m)
    if first then
      m.turn = held_by(first[1], first[4], CLAIM_SECONDS, before, counter)
    else
      m.turn = '0 ' .. counter
    end
    set[#set + 1], set[#set + 2] = 'turn', m.turn
    self.set_line(m, line, set)
    return first
  end

  -- Waking is a courtesy, for those who wait also poll: a user without the right to publish loses nothing else.
  function self.wake(one)
    if one and one[3] ~= '-' then redis.pcall('PUBLISH', one[3], one[1]) end
  end

  return self
end
