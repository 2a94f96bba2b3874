#!lua flags=allow-oom
-- batch_seal <batch> <retention_s> -> 1; 0 for an unknown one
-- All that will come has come: what was let in and did not is counted no more.
local id, retention = unpack(ARGV)
local record = q .. 'b:' .. id
if call('EXISTS', record) == 0 then return 0 end
call('ZREM', q .. 'filling', id)
local left = tonumber(call('HGET', record, 'left'))
if left > 0 then call('HINCRBY', record, 'count', -left) end
call('HSET', record, 'left', 0)
if call('HGET', record, 'finished_at') ~= '' then return 1 end
call('PERSIST', record)
call('PERSIST', q .. 'bad:' .. id)
close_batch(id, retention)
return 1
