#!lua flags=allow-oom
-- beat <worker> <ttl_s> <info json> -> 1. Workers that stopped beating are forgotten.
local worker, ttl, info = unpack(ARGV)
local t = now()
for _, silent in ipairs(call('ZRANGEBYSCORE', q .. 'beats', '-inf', t)) do
  call('ZREM', q .. 'beats', silent)
  call('HDEL', q .. 'workers', silent)
end
call('ZADD', q .. 'beats', t + tonumber(ttl), worker)
call('HSET', q .. 'workers', worker, info)
local told = cjson.decode(info)
for _, model in ipairs(told.ready and told.models or {}) do
  call('ZREMRANGEBYSCORE', q .. 'at:' .. model, '-inf', t)
  call('ZADD', q .. 'at:' .. model, t + tonumber(ttl), worker)
end
return 1
