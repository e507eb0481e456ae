-- Needs: base tools index
-- Takes a state that has gone out of an index that still lists it (the engine itself expired it).
-- ARGV: now, the index's name.
if call('HEXISTS', state, 'head') == 0 then
  call('ZREM', base .. 'by-id:' .. ARGV[2], body)
  call('ZREM', base .. 'by-time:' .. ARGV[2], body)
end
return 'ok'
