#!lua flags=allow-oom
-- hooks_redeliver <id> -> 1: due now, as if never tried; 0 if it is no dead delivery
local id = ARGV[1]
local key = q .. 'h:' .. id
if call('ZREM', q .. 'hooksdead', id) == 0 or call('EXISTS', key) == 0 then return 0 end
call('PERSIST', key)
call('HSET', key, 'attempt', 0, 'reason', '')
call('ZADD', q .. 'hooks', now(), id)
return 1
