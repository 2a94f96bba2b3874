#!lua flags=no-writes
-- workers -> info json of every worker whose heart beats
local alive = call('ZRANGEBYSCORE', q .. 'beats', '(' .. stamp(now()), '+inf')
if #alive == 0 then return {} end
return call('HMGET', q .. 'workers', unpack(alive))
