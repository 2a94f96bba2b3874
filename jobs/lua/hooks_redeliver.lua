#!lua flags=allow-oom
-- hooks_redeliver <id> <client or ''> -> 1: due now, as if never tried; 0 if it is no dead delivery, or none of that client
local id, client = ARGV[1], ARGV[2]
local key = q .. 'h:' .. id
local owner = call('HGET', key, 'client')
if not owner or (client ~= '' and owner ~= client) or call('ZREM', q .. 'hooksdead', id) == 0 then return 0 end
call('PERSIST', key)
call('HSET', key, 'attempt', 0, 'reason', '')
call('ZADD', q .. 'hooks', now(), id)
return 1
