#!lua flags=allow-oom
-- leave <worker> -> 1. The worker ends in good order and is no longer shown.
local info = call('HGET', q .. 'workers', ARGV[1])
for _, model in ipairs(info and cjson.decode(info).models or {}) do call('ZREM', q .. 'at:' .. model, ARGV[1]) end
call('ZREM', q .. 'beats', ARGV[1])
call('HDEL', q .. 'workers', ARGV[1])
return 1
