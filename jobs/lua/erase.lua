#!lua flags=allow-oom
-- erase <id> -> the record afterwards, without images if the job has ended; nil for an unknown id
local id = ARGV[1]
local status = call('HGET', job(id), 'status')
if not status then return false end
if status == 'succeeded' or status == 'failed' or status == 'canceled' then call('HSET', job(id), 'images', '[]') end
return call('HGETALL', job(id))
