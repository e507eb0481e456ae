-- The indexes of the partition, by id and by time of the last change: per tenant, kind, owner and label.
local tenant, body, kind
local function move_to(other)
  address, state = other, base .. 'state:' .. other
  tenant, body = '', address
  if sub(address, 1, 1) == '@' then
    local slash = find(address, '/', 1, true)
    tenant, body = sub(address, 2, slash - 1), sub(address, slash + 1)
  end
  kind = match(body, '^%a+')
end
move_to(address)

local function views(owner, labels)
  local names = {}
  if owner then names[1] = 'owner:' .. tenant .. ':' .. owner end
  if labels then
    for pair in string.gmatch(labels, '[^&]+') do names[#names + 1] = 'label:' .. tenant .. ':' .. pair end
  end
  return names
end

local function feed(stamp)
  call('XADD', base .. 'feed', 'MAXLEN', '~', 2000, '*', 'is', stamp .. ' ' .. nowtext .. ' ' .. address)
end
