-- The keys of a state, and their expiry.
local function expiry()
  local self = {}

  -- Every key but the state's record and the commits it knows.
  function self.parts()
    local keys = {key('entries'), key('keys'), key('journal'), key('once'), key('once-times')}
    for _, field in ipairs(call('HKEYS', state)) do
      if sub(field, 1, 4) == 'log:' then
        keys[#keys + 1] = key(field)
        keys[#keys + 1] = key('unique:' .. sub(field, 5))
      end
    end
    return keys
  end

  function self.all_keys()
    local keys = self.parts()
    keys[#keys + 1], keys[#keys + 2], keys[#keys + 3] = state, key('known'), key('known-before')
    return keys
  end

  -- Moves the expiry of a state to `expires`; `set` collects fields for its record.
  -- The engine's own expiry is a backstop at twice the time that is left, and renewed only when it has
  -- become much less than that. Relative, since `now` need not be the engine's clock.
  function self.set(m, expires, set)
    m.expires = text(expires)
    call('ZADD', base .. 'expiry', m.expires, 'scope\0' .. address)
    set[#set + 1], set[#set + 2] = 'expires', m.expires
    local left = math.min(math.max(expires - now, 1), 1e11)
    if m.native and tonumber(m.native) >= now + 1.5 * left then return end
    for _, one in ipairs(self.all_keys()) do call('PEXPIRE', one, format('%.0f', 2000 * left)) end
    m.native = text(now + 2 * left)
    set[#set + 1], set[#set + 2] = 'native', m.native
  end

  -- A turn of `span` seconds on what is absent or has expired: its record mustn't vanish under the
  -- holder, nor stay for ever.
  function self.linger(m, span, set)
    local left = math.max(LINGER, 2000 * span)
    if m.native then set[#set + 1], set[#set + 2] = 'native', text(now + left / 1000) end
    many('HSET', state, set)
    call('PEXPIRE', state, format('%.0f', left))
  end

  return self
end
