-- Takes a state that has gone out of an index that still lists it (the engine itself expired it).
-- ARGV: the index's name.
place()
if call('HEXISTS', state, 'commit') == 0 then
  call('ZREM', base .. 'by-id:' .. ARGV[1], body)
  call('ZREM', base .. 'by-time:' .. ARGV[1], body)
end
return 'ok'
