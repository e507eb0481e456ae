-- Removing a state.
local function removal()
  local self = {}

  function self.unlist_views(names)
    for _, name in ipairs(names) do
      call('ZREM', base .. 'by-id:' .. name, body)
      call('ZREM', base .. 'by-time:' .. name, body)
    end
  end

  function self.unlist(owner, labels)
    self.unlist_views(views(owner, labels))
    call('ZREM', base .. 'by-id:all:' .. tenant, body)
    call('ZREM', base .. 'by-time:kind:' .. tenant .. ':' .. kind, body)
  end

  -- Removes what a state holds; its version, its turn and its known commits stay.
  function self.wipe()
    local keys = expiry().parts()
    for start = 1, #keys, CHUNK do call('UNLINK', unpack(keys, start, math.min(start + CHUNK - 1, #keys))) end
    local fields = {'head', 'expires', 'native', 'owner', 'parent', 'labels'}
    for _, field in ipairs(call('HKEYS', state)) do
      if sub(field, 1, 4) == 'log:' or sub(field, 1, 8) == 'section:' then fields[#fields + 1] = field end
    end
    many('HDEL', state, fields)
    call('ZREM', base .. 'expiry', 'scope\0' .. address)
  end

  -- Drops a state. What is left is a tombstone: its last version, for as long as a lease may live.
  function self.bury(m)
    self.unlist(m.owner, m.labels)
    self.wipe()
    call('UNLINK', key('failures'))
    call('HSET', state, 'version', match(m.head, '^%d+'))
    for _, one in ipairs({state, key('known'), key('known-before')}) do
      if type(redis.pcall('HLEN', one)) == 'table' then call('UNLINK', one) else call('PEXPIRE', one, LINGER) end
    end
    feed('-')
  end

  return self
end
